"""Made-up images for throughput, and what a user's own function may return."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from bnbench import catalog
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.data import DataSplits, ImageSet, load
from bnbench.data.own import load_own
from bnbench.data.synthetic import make_synthetic

# Synthetic


def test_synthetic_sets_are_what_was_asked_and_the_same_everywhere():
    (config,) = compose_jobs(
        ["data=synthetic", "data.image_size=24", "data.num_classes=7", "data.train_images=40"], False
    )
    splits = load(config.data)
    assert splits.train.images.shape == (40, 3, 24, 24)
    assert splits.train.images.dtype == torch.uint8
    assert (len(splits.test), splits.test.num_classes) == (128, 7)
    assert set(splits.train.labels.tolist()) <= set(range(7))
    assert splits.train.digest() == load(config.data).train.digest()
    assert not torch.equal(splits.train.images[:10], splits.test.images[:10])
    assert splits.train.images.float().mean().item() == pytest.approx(127.5, abs=1)


def test_defaults_stay_modest_in_memory():
    """At the 299 pixels of Inception v3 too."""
    (config,) = compose_jobs(["data=synthetic", "data.image_size=299"], False)
    count = config.data.train_images + config.data.test_images
    assert count * 3 * 299**2 < 2**29


def test_a_synthetic_set_too_large_for_memory_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match=r"GiB.*lower data\.image_size"):
        make_synthetic(100_000, 10, 1000, 100)


@pytest.fixture(scope="module")
def by_model() -> dict[str, RunConfig]:
    """A run of each model on synthetic data of the default size."""
    jobs = compose_jobs(["data=synthetic", f"model={','.join(catalog.MODELS)}"], True)
    return {job.model.name: job for job in jobs}


def test_synthetic_images_are_as_large_as_the_model_asks_and_the_run_says_so(by_model):
    sizes = {name: job.identity()["data"]["image_size"] for name, job in by_model.items()}
    assert sizes["resnet8"] == sizes["vgg16"] == 32
    assert sizes["resnet50"] == sizes["densenet121"] == 64
    assert sizes["inception_v3"] == 299
    (given,) = compose_jobs(["data=synthetic", "model=densenet121", "data.image_size=40"], False)
    assert given.identity()["data"]["image_size"] == given.data.side == 40


def test_every_norm_takes_every_model_on_synthetic_data(by_model):
    """As far as the words can tell; Inception's auxiliary head sees one pixel, which `in` cannot take."""
    refused = []
    for kind in catalog.NORMS:
        words = ["norm.batch_size=4"] if kind == "ghost" else []
        norm = compose_jobs([f"norm={kind}", *words], False)[0].norm
        for name, job in by_model.items():
            try:
                dataclasses.replace(job, norm=norm)
            except ValueError:
                refused.append((name, kind))
    assert refused == [("inception_v3", "in")]


def test_synthetic_data_is_labelled_in_its_identity():
    (config,) = compose_jobs(["data=synthetic"], False)
    assert config.identity()["data"]["label"] == "synthetic data: throughput only"
    (real,) = compose_jobs(["data=digits"], False)
    assert "label" not in real.identity()["data"]


# A user's own


def _set(
    n: int = 4, *, images: torch.Tensor | None = None, labels: torch.Tensor | None = None, classes: int = 3
):
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8) if images is None else images
    return ImageSet(images, torch.arange(n) % classes if labels is None else labels, classes)


@pytest.fixture
def returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes `made_up.data` return a value; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_up.py").write_text("value = None\ndef data(image_size=None): return value\n")
    sys.modules.pop("made_up", None)
    import made_up

    def set_value(value: object) -> str:
        made_up.value = value
        return "made_up.data"

    yield set_value
    sys.modules.pop("made_up", None)


def test_splits_or_a_pair_are_taken(returns):
    train, test = _set(6), _set(4)
    for value in (DataSplits(train, test), (train, test), [train, test]):
        splits = load_own(returns(value), None, {})
        assert (splits.train, splits.test) == (train, test)


WRONG = {
    "nothing": (None, "returned NoneType"),
    "one set": (_set(), "returned ImageSet"),
    "no sets": ((1, 2), "train set is a int"),
    "floats": ((_set(images=torch.rand(4, 3, 8, 8)), _set()), "torch.uint8"),
    "channels last": ((_set(images=torch.zeros(4, 8, 8, 3, dtype=torch.uint8)), _set()), r"\(4, 8, 8, 3\)"),
    "not square": ((_set(images=torch.zeros(4, 3, 8, 6, dtype=torch.uint8)), _set()), "8x6"),
    "labels of another type": ((_set(), _set(labels=torch.zeros(4))), "test set has labels"),
    "too few labels": ((_set(), _set(labels=torch.zeros(3, dtype=torch.int64))), "test set has labels"),
    "labels that are no class": ((_set(labels=torch.tensor([0, 1, 2, 3])), _set()), "outside 0 to 2"),
    "no images": ((_set(0), _set()), "empty"),
    "too few sources": ((dataclasses.replace(_set(), sources=torch.arange(3)), _set()), "has sources"),
    "other classes": ((_set(), _set(classes=2)), "differ"),
}


@pytest.mark.parametrize(("value", "said"), WRONG.values(), ids=WRONG.keys())
def test_anything_else_is_one_line(returns, value, said):
    with pytest.raises(ValueError, match=rf"^data\.name=made_up\.data.*{said}") as caught:
        load_own(returns(value), None, {})
    assert "\n" not in str(caught.value)


def test_images_of_another_size_than_asked_are_refused(returns):
    with pytest.raises(ValueError, match=r"8 pixels wide, not data\.image_size=16"):
        load_own(returns((_set(), _set())), 16, {})
