"""Training images held out for tuning: apart, by class, the same for every run, the test set untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bnbench.compose import compose_jobs
from bnbench.config import DataConfig
from bnbench.data import DataSplits, ImageSet, Normalizer, describe, load, make_loaders
from bnbench.data.digits import TRAIN_COPIES, load_digits
from bnbench.data.holdout import hold_out
from bnbench.span import DEVICE


def _set(labels: list[int], sources: list[int] | None = None) -> ImageSet:
    """Images that are their numbers."""
    numbers = torch.arange(len(labels), dtype=torch.int64)
    made_from = None if sources is None else torch.tensor(sources)
    return ImageSet(numbers, torch.tensor(labels), max(labels) + 1, made_from)


def _held(train: ImageSet, count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    test = _set([0, 1])
    splits = hold_out(DataSplits(train, test), count, seed)
    assert splits.test is test and splits.validation is splits.holdout
    assert isinstance(splits.train, ImageSet) and isinstance(splits.holdout, ImageSet)
    for part in (splits.train, splits.holdout):
        assert torch.equal(part.labels, train.labels[part.images]), "a label stays with its image"
    return splits.train.images.tolist(), splits.holdout.images.tolist()


LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60)


@settings(max_examples=80, deadline=None)
@given(labels=LABELS, data=st.data(), seed=st.integers(0, 3))
def test_it_is_a_part_with_the_classes_in_their_shares(labels, data, seed):
    count = data.draw(st.integers(1, len(labels) - 1))
    kept, held = _held(_set(labels), count, seed)
    assert sorted(kept + held) == list(range(len(labels))) and len(held) == count
    for label in set(labels):
        share = sum(labels[i] == label for i in held) - count * labels.count(label) / len(labels)
        assert abs(share) <= 1.5 + 1e-9


def test_equal_classes_are_held_out_equally():
    _, held = _held(_set([0, 1, 2, 3] * 25), 20)
    assert torch.tensor(held).remainder(4).bincount().tolist() == [5, 5, 5, 5]


def test_the_choice_is_by_its_own_seed_alone_and_a_smaller_one_is_part_of_a_larger():
    train = _set([0, 1, 1] * 20)
    torch.manual_seed(99)
    first = _held(train, 12)
    assert _held(train, 12) == first
    assert set(first[1]) < set(_held(train, 13)[1])
    assert _held(train, 12, seed=1)[1] != first[1]


@settings(max_examples=60, deadline=None)
@given(pictures=LABELS, copies=st.integers(1, 5), data=st.data())
def test_images_made_from_one_picture_stay_on_one_side(pictures, copies, data):
    count = data.draw(st.integers(1, (len(pictures) - 1) * copies))
    numbers = list(range(len(pictures))) * copies
    kept, held = _held(_set([pictures[i] for i in numbers], numbers), count)
    assert len(held) == len(set(held)) == count
    assert not {numbers[i] for i in kept} & {numbers[i] for i in held}
    assert len(numbers) - len(kept) - len(held) < copies, "no more is left out than of one picture"


def test_no_digit_is_trained_on_and_validated_on():
    """Eight copies of each are augmented before the choice."""
    whole = load_digits().train
    (config,) = compose_jobs(["data.val_images=1000"], False)
    splits = load(config.data)
    assert isinstance(splits.train, ImageSet) and isinstance(splits.holdout, ImageSet)
    assert splits.train.sources is not None and splits.holdout.sources is not None
    assert not set(splits.train.sources.tolist()) & set(splits.holdout.sources.tolist())
    assert len(splits.holdout) == 1000 and 0 <= 10_240 - 1000 - len(splits.train) < TRAIN_COPIES
    known = {image.numpy().tobytes() for image in whole.images}
    assert {image.numpy().tobytes() for image in splits.holdout.images} < known
    without = load(compose_jobs([], False)[0].data)
    assert splits.test.digest() == without.test.digest() and without.holdout is None


def test_a_tree_of_images_holds_out_the_same_files_decoded_or_streamed(tmp_path: Path):
    for split, count in (("train", 9), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (20 * i, 90 * label, 7)).save(tmp_path / split / name / f"{i}.png")
    words = [f"data.root={tmp_path}", "data.image_size=8", "data.val_images=6", "data.max_train=16"]
    decoded, streamed = (
        load(compose_jobs([f"data={name}", *words], False)[0].data)
        for name in ("image_folder", "streamed_folder")
    )
    for part in ("train", "holdout", "test"):
        one, other = getattr(decoded, part), getattr(streamed, part)
        shades = [Image.open(other.path(i)).getpixel((0, 0)) for i in range(len(other))]
        assert [tuple(pixel) for pixel in one.images[:, :, 0, 0].tolist()] == shades
        assert torch.equal(one.labels, other.labels)
    assert len(decoded.holdout) == 6 and len(decoded.train) == 10


PLAIN = Normalizer((0.0,) * 3, (1.0,) * 3, torch.device("cpu"), torch.float64)


def _config(*words: str) -> DataConfig:
    return compose_jobs(["data=synthetic", "data.train_images=40", "data.test_images=10", *words], False)[
        0
    ].data


def _loaders(config: DataConfig, global_batch: int = 8, world_size: int = 2):
    place = {
        "rank": 0,
        "world_size": world_size,
        "span": DEVICE,
        "accumulate": 1,
        "seed": 0,
        "test_batch": 500,
    }
    return make_loaders(config, load(config), PLAIN, global_batch=global_batch, **place)


def test_a_run_is_validated_on_it_and_the_record_says_so():
    config = _config("data.val_images=12", "data.val_seed=3")
    splits = load(config)
    train, validation = _loaders(config, world_size=1)
    ((images, labels),) = validation
    assert torch.equal(labels, splits.validation.labels) and splits.validation is splits.holdout
    assert torch.equal((images * 255).round().to(torch.uint8), splits.holdout.images)
    assert train.steps == 28 // 8
    said = describe(config, splits)
    assert said == said | {
        **{"train_images": 28, "holdout_images": 12, "test_images": 10, "classes": 10},
        **{"validated_on": "holdout", "holdout_seed": 3, "holdout_sha256": splits.holdout.digest()},
    }
    plain = describe(_config(), load(_config()))
    assert plain["validated_on"] == "test" and not any(key.startswith("holdout") for key in plain)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.val_images=40"], r"data\.val_images=40 is not below the 40 training images"),
        (["data.val_images=39", "data.max_train=39"], r"data\.val_images=39 is not below the 39 training"),
        (
            ["data.val_images=33"],
            r"data\.val_images=33 leaves 7 images to train on, fewer than global_batch=8",
        ),
        (["data.val_images=1"], r"data\.val_images=1 does not reach for 2 ranks: raise it"),
        (["data.val_images=0"], r"data\.val_images=0 must be .* at least 1"),
        (["data.val_images=4", "data.val_seed=-1"], r"data\.val_seed=-1 must be at least 0"),
        (["data.val_seed=1"], r"data\.val_seed=1 would be ignored without data\.val_images"),
    ],
)
def test_what_cannot_be_held_out_is_one_line(words, said):
    with pytest.raises(ValueError, match=said) as caught:
        _loaders(_config(*words))
    assert "\n" not in str(caught.value)


def test_a_picture_must_be_left_to_train_on():
    with pytest.raises(ValueError, match=r"data\.val_images=5 leaves no picture to train on"):
        hold_out(DataSplits(_set([0] * 6, [0, 1] * 3), _set([0])), 5, 0)


def test_it_is_in_the_identity_when_there_is_one():
    plain, held, other = (
        compose_jobs(words, False)[0].identity()["data"]
        for words in ([], ["data.val_images=8"], ["data.val_images=8", "data.val_seed=1"])
    )
    assert not {"val_images", "val_seed"} & plain.keys()
    assert held == plain | {"val_images": 8, "val_seed": 0}
    assert other == held | {"val_seed": 1}
