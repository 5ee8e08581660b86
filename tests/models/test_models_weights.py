"""Pretrained weights from a local file: all of them, or a line that says what does not fit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from bnbench.models import build_model

SMALL = {"depth": 10, "growth": 4}


def trained(name: str = "cifar_densenet", classes: int = 10, **options) -> nn.Module:
    """A model whose every tensor differs from how any other starts."""
    torch.manual_seed(1)
    model = build_model(name, classes, **options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand_like(tensor.float()) + 1)
    return model


def save(path, model_or_state) -> str:
    torch.save(model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state, path)
    return str(path)


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize("form", ["bare", "state_dict", "model", "module."])
def test_a_round_trip_restores_every_tensor(tmp_path, form, recwarn):
    state = trained(**SMALL).state_dict()
    written = {"bare": state, "module.": {f"module.{key}": v for key, v in state.items()}}
    path = save(tmp_path / "w.pt", written.get(form, {form: state, "epoch": 3}))
    assert same(build_model("cifar_densenet", 10, weights=path, **SMALL), state)
    assert not recwarn.list


def test_the_swap_comes_after_the_weights(tmp_path):
    source = trained(**SMALL)
    model = build_model("cifar_densenet", 10, norm="gn", weights=save(tmp_path / "w.pt", source), **SMALL)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.norm.weight, source.norm.weight)
    assert not isinstance(model.norm, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet8", {"fc.weight", "fc.bias"}),
        ("cifar_vgg11", {"fc.weight", "fc.bias"}),
        (
            "googlenet",
            {f"{layer}.{kind}" for layer in ("fc", "aux1.fc2", "aux2.fc2") for kind in ("weight", "bias")},
        ),
    ],
)
def test_a_classifier_for_other_classes_starts_anew_and_this_is_said(tmp_path, name, own):
    source = trained(name, classes=7)
    path = save(tmp_path / "w.pt", source)
    torch.manual_seed(2)
    fresh = build_model(name, 5).state_dict()
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match="keep their initialisation") as caught:
        loaded = build_model(name, 5, weights=path).state_dict()
    assert all(key in str(caught[0].message) for key in own)
    for key, tensor in loaded.items():
        assert torch.equal(tensor, fresh[key] if key in own else source.state_dict()[key]), key


def test_auxiliary_heads_that_only_one_side_has_are_left_alone(tmp_path):
    whole, bare = trained("googlenet"), trained("googlenet", aux_weight=0.0)
    model = build_model("googlenet", 10, aux_weight=0.0, weights=save(tmp_path / "whole.pt", whole))
    assert torch.equal(model.conv1.conv.weight, whole.conv1.conv.weight)
    with pytest.warns(UserWarning, match=r"aux1\.conv\.conv\.weight"):
        model = build_model("googlenet", 10, weights=save(tmp_path / "bare.pt", bare))
    assert torch.equal(model.conv1.conv.weight, bare.conv1.conv.weight)


def test_torchvisions_densenet_files_have_older_names(tmp_path):
    state = trained("densenet121").state_dict()
    old = {
        re.sub(r"(norm|conv)(\d)(?=\.\w+$)", r"\1.\2", key) if "denselayer" in key else key: tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert old.keys() != state.keys()
    loaded = build_model("densenet121", 10, weights=save(tmp_path / "w.pt", old)).state_dict()
    assert all(torch.equal(loaded[key], v) for key, v in state.items() if not key.endswith("tracked"))


def test_what_does_not_fit_is_one_line_with_counts_and_examples(tmp_path):
    state = trained(**SMALL).state_dict()
    del state["norm.weight"]
    state["extra"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(16, 3, 5, 5)
    path = save(tmp_path / "w.pt", state)
    with pytest.raises(
        ValueError, match=r"does not fit CifarDenseNet: of its \d+ tensors 1 missing \(norm"
    ) as caught:
        build_model("cifar_densenet", 10, weights=path, **SMALL)
    message = str(caught.value)
    assert path in message
    assert "1 unexpected (extra)" in message
    assert "1 of another shape (conv1.weight (16, 3, 5, 5), not (16, 3, 3, 3))" in message
    assert "\n" not in message


def test_one_order_of_layers_is_not_taken_for_the_other(tmp_path):
    path = save(tmp_path / "w.pt", trained("resnet18"))
    with pytest.raises(ValueError, match=r"missing \(.*unexpected \(bn1\.weight"):
        build_model("resnet18", 10, preact=True, weights=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "no file that torch.load reads"),
        (b"not a checkpoint", "no file that torch.load reads"),
        (
            nn.Linear(2, 2),
            "no file that torch.load reads with weights_only=True",
        ),  # a pickled module runs code
        ([torch.ones(1)], "holds no state_dict"),
        ({"epoch": 3}, "holds no state_dict"),
    ],
)
def test_a_file_that_is_none_is_a_users_mistake(tmp_path, content, message):
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        build_model("resnet8", 10, weights=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
