"""Residual branches are found in the graph, and start so that depth does no harm."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.models import build_model
from bnbench.norms import (
    NoNorm2d,
    UntraceableError,
    initialize_residual,
    place_norms,
    residual_branches,
    swap_norms,
)
from tests.norms.small_nets import Residual, Untraceable, apply, assert_same, images, outcome, shaken

pytestmark = pytest.mark.norms


def built(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, 5, **options)


def test_a_branch_is_the_side_with_more_convolutions():
    assert residual_branches(Residual()) == [["norm1", "norm2"]]
    placed = Residual()
    place_norms(placed, "after")
    assert residual_branches(placed) == [["norm1", "norm2"]]


# Branches, the norms of each, the first and the last of them.
BRANCHES = {
    ("resnet8",): (3, 2, ["blocks.0.norm1", "blocks.0.norm2"], ["blocks.2.norm1", "blocks.2.norm2"]),
    ("resnet56",): (27, 2, ["blocks.0.norm1", "blocks.0.norm2"], ["blocks.26.norm1", "blocks.26.norm2"]),
    ("resnet18",): (8, 2, ["layer1.0.bn1", "layer1.0.bn2"], ["layer4.1.bn1", "layer4.1.bn2"]),
    ("resnet50",): (16, 3, [f"layer1.0.bn{i}" for i in (1, 2, 3)], [f"layer4.2.bn{i}" for i in (1, 2, 3)]),
    # The first norm of a stage comes before the split.
    ("resnet8", "preact"): (3, 1, ["blocks.0.norm2"], ["blocks.2.norm2"]),
    ("resnet20", "preact"): (9, None, ["blocks.0.norm2"], ["blocks.8.norm1", "blocks.8.norm2"]),
    ("resnet50", "preact"): (
        16,
        None,
        ["layer1.0.bn2", "layer1.0.bn3"],
        [f"layer4.2.bn{i}" for i in (1, 2, 3)],
    ),
}


@pytest.mark.parametrize("form", BRANCHES, ids="-".join)
def test_branches_of_the_resnets(form):
    name, *preact = form
    with torch.device("meta"):
        model = build_model(name, 5, **({"preact": True} if preact else {}))
    count, norms, first, last = BRANCHES[form]
    found = residual_branches(model)
    assert len(found) == count and (found[0], found[-1]) == (first, last)
    assert norms is None or {len(branch) for branch in found} == {norms}


@pytest.mark.parametrize("name", ["vgg11", "cifar_densenet", "cifar_inception"])
def test_networks_without_additions_have_none(name):
    with torch.device("meta"):
        model = build_model(name, 5, **({"depth": 10} if name == "cifar_densenet" else {}))
    assert residual_branches(model) == []
    report = swap_norms(model, "none", init="fixup")
    assert report.init.branches == 0 and "no residual branches" in str(report)


def test_an_addition_of_something_else_is_no_branch():
    def forward(self, x):
        return F.relu(self.norm(self.conv(x))) + self.bias

    model = apply(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    model.bias = nn.Parameter(torch.zeros(3, 1, 1))
    assert residual_branches(model) == []


@pytest.mark.parametrize("kind", ["bn", "none"])
def test_zero_gamma_makes_the_trunk_the_identity(kind):
    model = built("resnet20")
    if kind == "none":
        report = swap_norms(model, "none")  # zero_gamma is its default
        assert (report.init.scheme, report.init.branches) == ("zero_gamma", 9)
    else:
        initialize_residual(model, "zero_gamma")
    x = images(2, 16).repeat_interleave(2, 0)[:, :, :8, :8]
    stem = F.relu(model.norm1(model.conv1(x)))
    trunk = stem
    for block in model.blocks:
        trunk = block.shortcut(trunk)
    assert torch.equal(model.blocks(stem), trunk)
    loss = model(x).square().sum()
    loss.backward()  # and it learns: the last weights move first
    assert all(block.norm2.weight.grad.abs().sum() > 0 for block in model.blocks)


def test_fixups_values_are_the_formulas():
    model = built("resnet50")
    before = {name: p.clone() for name, p in model.named_parameters() if "conv" in name}
    report = swap_norms(model, "none", init="fixup")
    branches = residual_branches(model)
    for branch in branches:
        values = [model.get_submodule(path).weight for path in branch]
        expected = [16 ** (-1 / (2 * 3 - 2))] * 2 + [0.0]
        for weight, value in zip(values, expected, strict=True):
            torch.testing.assert_close(weight, torch.full_like(weight, value))
    others = {p for p, m in model.named_modules() if isinstance(m, NoNorm2d)} - {
        p for b in branches for p in b
    }
    assert all(
        torch.equal(model.get_submodule(p).weight, torch.ones_like(model.get_submodule(p).weight))
        for p in others
    )
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in before.items())
    assert report.init.weights == {
        path: value for branch in branches for path, value in zip(branch, [0.5, 0.5, 0.0], strict=True)
    }
    assert (
        "init fixup: 16 residual branches, 32 norms start at weight 0.5, 16 norms start at weight 0"
        in str(report)
    )
    assert json.loads(json.dumps(report.as_dict()))["init"]["branches"] == 16


@pytest.mark.parametrize("scheme", ["zero_gamma", "fixup"])
def test_the_function_at_the_start_is_that_of_scaled_convolutions(scheme):
    """The factor stands in the norm behind a convolution; Fixup has it in the convolution itself."""
    model, scaled = built("resnet20", preact=True).double(), built("resnet20", preact=True).double()
    swap_norms(model, "none", init=scheme)
    swap_norms(scaled, "none", init="none")
    count = 9
    for block in scaled.blocks:
        with torch.no_grad():  # no weight of 0: a ReLU behind it would let nothing through to learn by
            block.conv2.weight.mul_(count**-0.5)
    x = images(2, 8, torch.double)
    torch.testing.assert_close(model(x), scaled(x), rtol=1e-10, atol=1e-10)
    model(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_branch_is_initialized_in_the_order_it_runs_in():
    """conv -> norm -> relu -> sum: 0 would never learn. Moved, the branch ends in its norm, and 0 is right."""

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))

    model = apply(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    assert (
        initialize_residual(copy.deepcopy(model), "zero_gamma").weights == {}
    )  # one branch: 1^(-1/2), as it is
    place_norms(model, "after")
    assert initialize_residual(model, "zero_gamma").weights == {"norm": 0.0}
    x = images()
    assert torch.equal(model(x), x + model.norm.bias[:, None, None])
    model(x).square().sum().backward()
    assert (model.norm.weight.grad != 0).any()


def test_an_initialization_is_undone_by_a_swap_back_unless_it_was_trained():
    x = images()
    for way in (["none"], ["none", "gn"], ["none", "none"]):
        model, untouched = shaken(Residual().double()), shaken(Residual().double())
        untouched.load_state_dict(model.state_dict())
        for kind in way:
            swap_norms(model, kind, **({"num_groups": 2} if kind == "gn" else {}))
        swap_norms(model, "bn")
        assert torch.equal(model.norm2.weight, untouched.norm2.weight)
        untouched.load_state_dict(model.state_dict())
        assert_same(outcome(model, x.double()), outcome(untouched, x.double()))
    model = shaken(Residual())
    swap_norms(model, "none")
    assert not model.norm2.weight.any()
    with torch.no_grad():
        model.norm2.weight.fill_(0.25)  # one value, but not the one it started at
    swap_norms(model, "bn")
    assert torch.equal(model.norm2.weight, torch.full((6,), 0.25))


@pytest.mark.parametrize("scheme", ["zero_gamma", "fixup"])
@pytest.mark.parametrize("preact", [False, True])
def test_56_layers_without_norms_take_steps_at_a_learning_rate_of_a_tenth(scheme, preact):
    model = built("resnet56", preact=preact)
    swap_norms(model, "none", init=scheme)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, labels = images(4, 8), torch.arange(4)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(F.cross_entropy(model(x), labels).item())
    assert all(loss < 100 for loss in losses), losses  # neither infinite nor NaN
    assert all(p.isfinite().all() for p in model.parameters())


def test_without_an_initialization_depth_explodes():
    """What the schemes are for."""
    model = built("resnet56")
    swap_norms(model, "none", init="none")
    assert model(images(4, 8)).std() > 1e3


def test_what_cannot_be_initialized_is_refused_and_stays_as_it_was():
    model = Residual()
    with pytest.raises(
        ValueError, match="unknown residual initialization 'one'; known: none, zero_gamma, fixup"
    ):
        initialize_residual(model, "one")
    with pytest.raises(ValueError, match="norm1 is BatchNorm2d, which undoes any scale before it"):
        initialize_residual(model, "fixup")
    model.norm2 = nn.InstanceNorm2d(6)
    with pytest.raises(ValueError, match="weight of norm2, and InstanceNorm2d there has none to train"):
        initialize_residual(model, "zero_gamma")
    assert torch.equal(model.norm1.weight, torch.ones(6))
    with pytest.raises(UntraceableError):
        initialize_residual(Untraceable(), "zero_gamma")
    assert initialize_residual(Untraceable(), "none").branches == 0
