"""The pre-activation order: nothing stands on the way of the trunk (He et al. 2016b)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnbench.models import build_model
from bnbench.models.cifar_resnet import PreactBlock
from bnbench.models.preact import PreactBasicBlock, PreactBottleneck

NAMES = ["resnet8", "resnet20", "resnet18", "resnet50", "resnext50_32x4d"]


def units(model: nn.Module) -> list[nn.Module]:
    kinds = (PreactBlock, PreactBasicBlock, PreactBottleneck)
    return [module for module in model.modules() if isinstance(module, kinds)]


def last_conv(unit: nn.Module) -> nn.Conv2d:
    return unit.conv3 if isinstance(unit, PreactBottleneck) else unit.conv2


def first_norm(unit: nn.Module) -> nn.Module:
    return unit.norm1 if isinstance(unit, PreactBlock) else unit.bn1


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_without_its_branch_is_the_identity_or_its_stages_shortcut(name):
    model = build_model(name, 5, preact=True)
    shares = []

    def check(unit: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        (x,) = inputs
        if not unit.first:
            assert torch.equal(output, x)
            return
        activated = torch.relu(
            first_norm(unit).eval()(x)
        )  # in eval mode: the hook must not move its statistics
        if isinstance(unit, PreactBlock):
            want = unit.shortcut(activated)
        else:
            want = activated if unit.downsample is None else unit.downsample(activated)
        assert torch.equal(output, want)
        shares.append(unit)

    for unit in units(model):
        nn.init.zeros_(last_conv(unit).weight)
        unit.register_forward_hook(check)
    model.eval()(torch.randn(2, 3, 32, 32))
    assert len(shares) == (3 if name in ("resnet8", "resnet20") else 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_norm_is_inside_a_unit_but_the_last_and_none_is_on_a_shortcut(name):
    model = build_model(name, 5, preact=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    inside = sum(3 if isinstance(unit, PreactBottleneck) else 2 for unit in units(model))
    assert len(norms) == inside + 1
    assert model.final_norm.num_features == model.fc.in_features
    for unit in units(model):
        assert isinstance(getattr(unit, "downsample", None), nn.Conv2d | None)


@pytest.mark.parametrize("name", NAMES)
def test_both_orders_start_from_the_same_convolutions(name):
    weights = []
    for preact in (False, True):
        torch.manual_seed(11)
        model = build_model(name, 5, preact=preact)
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
    assert len(weights[0]) == len(weights[1])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_gradient_reaches_the_first_unit_unscaled():
    """Equation 5 there: with all branches at zero the gradient of a stage's output is that of its input."""
    model = build_model("resnet32", 5, preact=True).double()
    stage = model.blocks[:5]
    for unit in stage:
        nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(2, 16, 8, 8, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(2, 16, 8, 8, dtype=torch.double)
    (gradient,) = torch.autograd.grad(stage[1:](x), x, upstream)
    assert torch.equal(gradient, upstream)
