"""The Hydra group `model`: what each network reads, what defines it, and sizes that cannot train."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import shutil
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bnbench import catalog
from bnbench.compose import compose_jobs
from bnbench.config import ModelConfig, RunConfig
from bnbench.folders import config_folder
from bnbench.models import MODELS, build_model
from bnbench.sweep.plan import plan_single, plan_sweep

NET = """
from torch import nn


class TinyNet(nn.Sequential):
    def __init__(self, num_classes, channels=4):
        super().__init__(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def no_net(num_classes):
    return "a string"
"""


def one(*words: str) -> RunConfig:
    (run,) = compose_jobs(words, multirun=False)
    return run


@functools.cache
def base() -> RunConfig:
    return one(*synthetic(32))


def chosen(name: str, side: int, **changes: Any) -> RunConfig:
    """The run of `model=name` on images of one side; without Hydra, which takes a third of a second."""
    settings = OmegaConf.to_container(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))
    assert isinstance(settings, dict)
    data = dataclasses.replace(base().data, image_size=side)
    return dataclasses.replace(base(), model=ModelConfig(**{**settings, **changes}), data=data)


def synthetic(side: int) -> list[str]:
    return ["data=synthetic", f"data.image_size={side}"]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "nets_for_a_test.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "nets_for_a_test"


@pytest.mark.parametrize("name", MODELS)
def test_each_choice_gives_what_its_network_reads_as_its_builder_would_by_itself(name):
    run = chosen(name, catalog.MODELS[name].min_side)
    assert run.ignored() == {}
    options = run.model.builder_options()
    assert set(options) == set(catalog.MODELS[name].uses) - {"weights"}
    defaults = inspect.signature(MODELS[name]).parameters
    assert options == {key: defaults[key].default for key in options}
    assert run.run_name.startswith(f"{name}-bn-")


def test_a_setting_that_a_network_does_not_read_is_refused_alone_and_collapses_in_a_sweep():
    with pytest.raises(
        ValueError, match=r"model.width=8 would be ignored by model=cifar_vgg11: .* reads weights"
    ):
        plan_single(one("model=cifar_vgg11", "model.width=8", *synthetic(32)))
    plan = plan_sweep(
        compose_jobs(["model=resnet8,cifar_vgg11", "model.width=4,8", *synthetic(32)], multirun=True)
    )
    assert [run.model.label for run in plan.runs] == ["resnet8", "resnet8", "cifar_vgg11"]
    assert any("model=cifar_vgg11 does not read model.width" in remark for remark in plan.remarks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=resnet8", "model.preact=null"], "model.preact has no value, and model=resnet8 needs one"),
        (["model=cifar_densenet", "model.depth=41"], r"model.depth=41: .*nearest are 40 or 43"),
        (["model=cifar_densenet", "model.growth=0"], "model.growth=0 must be"),
        (
            ["model=googlenet", "model.aux_weight=-0.1"],
            "model.aux_weight=-0.1 must be a finite number at least 0",
        ),
        (["model.weights=nowhere.pt"], "model.weights=nowhere.pt is not there"),
        (["model=custom"], "model.name has no value: give model.name="),
        (["model=custom", "model.name=nowhere_to_be_found.Net"], "there is no module nowhere_to_be_found"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_imported(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        one(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, info in catalog.MODELS.items() if info.min_side > 1])
def test_images_that_are_too_small_are_refused_with_the_size_that_is_not(name):
    smallest = catalog.MODELS[name].min_side
    assert chosen(name, smallest)
    with pytest.raises(
        ValueError, match=rf"model={name} on images of .* needs {smallest}x{smallest} "
    ) as caught:
        chosen(name, smallest - 1)
    assert ("model.aux_weight=0" in str(caught.value)) == (name == "inception_v3")


def test_inception_without_its_head_takes_smaller_images():
    assert chosen("inception_v3", 75, aux_weight=0.0)
    with pytest.raises(ValueError, match="needs 75x75") as caught:
        chosen("inception_v3", 74, aux_weight=0.0)
    assert "model.aux_weight" not in str(caught.value)


def test_images_of_known_sets_are_checked_too():
    with pytest.raises(ValueError, match="model=vgg11 on images of 16x16"):
        one("model=vgg11")


def test_one_value_a_channel_is_refused_where_the_layer_would():
    words = ["model=resnet18", *synthetic(32)]
    with pytest.raises(ValueError, match=r"an NBS of 1: .* norm.batch_size=2 or more, or images from 33x33"):
        one(*words, "norm.batch_size=1")
    with pytest.raises(ValueError, match=r"norm=in: .* another norm, or images from 33x33"):
        one(*words, "norm=in")
    for allowed in (
        [*words, "norm.batch_size=2"],
        [*words, "norm=gn"],
        ["model=resnet18", *synthetic(33), "norm=in"],
    ):
        assert one(*allowed)
    with pytest.raises(ValueError, match="images from 9x9"):
        one("model=resnet8", "model.stem_stride=2", "norm=in", *synthetic(8))
    assert one("model=resnet8", "model.stem_stride=2", "norm=in", *synthetic(9))


def test_weights_are_known_by_their_content_not_by_their_path(tmp_path):
    for file, value in {"a.pt": 1.0, "c.pt": 2.0}.items():
        torch.save({"w": torch.tensor(value)}, tmp_path / file)
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    first, again, other = (one(f"model.weights={tmp_path}/{file}.pt").identity() for file in "abc")
    assert first == again != other
    assert "weights" not in one().identity()["model"]
    assert str(tmp_path) not in str(first)


def test_a_users_own_network_goes_in_by_dotted_path(own_module):
    run = one("model=custom", f"model.name={own_module}.TinyNet", "+model.options.channels=6")
    assert run.run_name == "TinyNet-bn-nbs32-s0"
    assert run.identity()["model"]["options"] == {"channels": 6}
    assert run.ignored() == {}
    model = build_model(
        run.model.name, 3, norm={"name": "gn", "num_groups": 2}, **run.model.builder_options()
    )
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert model[1].num_groups == 2
    changed = one("model=custom", f"model.name={own_module}.TinyNet", "+model.options.channels=8")
    assert changed.identity() != run.identity()


def test_a_users_own_network_that_does_not_fit_is_one_line(own_module):
    for name, options, message in [
        ("TinyNet", {"chanels": 6}, r"called with \(num_classes, \*\*options\): .*chanels"),
        ("no_net", {}, "must build an nn.Module; it gave a str"),
        ("Nothing", {}, "has no Nothing; it defines TinyNet, no_net"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_model(f"{own_module}.{name}", 3, **options)
    with pytest.raises(ValueError, match=r"model.width=8 would be ignored"):
        plan_single(one("model=custom", f"model.name={own_module}.TinyNet", "model.width=8"))
