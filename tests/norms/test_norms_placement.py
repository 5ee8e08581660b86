"""Norms behind their activation: the network that one would write by hand, and back to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.models import build_model
from bnbench.norms import UntraceableError, place_norms, swap_norms
from tests.norms.small_nets import (
    FOLLOWED,
    ByMode,
    Moved,
    Residual,
    Untraceable,
    apply,
    assert_near,
    assert_same,
    images,
    outcome,
    same_state,
    shaken,
    state_of,
)

pytestmark = pytest.mark.norms
ACTIVATIONS = {
    "relu in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "leaky in place": nn.LeakyReLU(0.3, inplace=True),
    "elu": nn.ELU(0.7),
    "silu": nn.SiLU(),
    "mish": nn.Mish(inplace=True),
    "gelu": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(),
}
FUNCTIONS = {
    "relu_": lambda x: x.relu_(),
    "torch.relu": torch.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.3, inplace=True),
    "leaky_": lambda x: F.leaky_relu_(x, 0.3),
    "elu": lambda x: F.elu(x, alpha=0.7),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: F.silu(input=x),
}


def residual(cls: type[nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(0)
    return shaken(cls()).double()


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_network_written_by_hand(training):
    model, byhand = residual().train(training), residual(Moved).train(training)
    report = place_norms(model, "after")
    assert report.moved == FOLLOWED
    assert report.stayed == {"norm2": "followed by an addition", "shortcut.1": "followed by an addition"}
    x = images(dtype=torch.double)
    assert_near(outcome(model, x), outcome(byhand, x), 1e-12)
    assert same_state(state_of(model), state_of(byhand))


@pytest.mark.parametrize("name", [*ACTIVATIONS, *(f"function {name}" for name in FUNCTIONS)])
@pytest.mark.parametrize("order", ["conv-norm-act", "norm-act-conv"])
def test_every_activation_moves_with_its_options(name, order):
    parts = {"conv": nn.Conv2d(3, 3, 1), "norm": shaken(nn.BatchNorm2d(3))}
    if name in ACTIVATIONS:
        parts["act"] = ACTIVATIONS[name]
        act = lambda self, x: self.act(x)  # noqa: E731
    else:
        act = lambda self, x: FUNCTIONS[name.removeprefix("function ")](x)  # noqa: E731
    before, after = {
        "conv-norm-act": (
            lambda self, x: act(self, self.norm(self.conv(x))),
            lambda self, x: self.norm(act(self, self.conv(x))),
        ),
        "norm-act-conv": (
            lambda self, x: self.conv(act(self, self.norm(x + 0.5))),
            lambda self, x: self.conv(self.norm(act(self, (x + 0.5).clone()))),
        ),
    }[order]
    model, byhand = apply(before, **copy.deepcopy(parts)), apply(after, **copy.deepcopy(parts))
    assert place_norms(model, "after").moved == ["norm"]
    assert_near(outcome(model, images()), outcome(byhand, images()), 1e-6)


def test_what_others_read_is_not_overwritten():
    def dense(self, x):  # as in a DenseNet, the norm's input goes along
        return torch.cat([x, self.relu(self.norm(x))], 1)

    def twice(self, x):
        y = self.conv(x)
        return self.relu(self.norm(y)) + y

    def viewed(self, x):
        y = self.conv(x)
        z = y.flatten(2)
        return self.relu(self.norm(y)) + z.view(y.shape)

    for forward in (dense, twice, viewed):
        model = apply(forward, norm=nn.BatchNorm2d(3), relu=nn.ReLU(inplace=True), conv=nn.Conv2d(3, 3, 1))
        expected = copy.deepcopy(model)
        x, untouched = images(), images()
        assert place_norms(model, "after").moved == ["norm"]
        y = model(x)
        assert torch.equal(x, untouched)
        inner = x if forward is dense else expected.conv(x)
        moved = expected.norm(F.relu(inner))
        want = torch.cat([x, moved], 1) if forward is dense else moved + inner
        torch.testing.assert_close(y, want)
        y.sum().backward()


@pytest.mark.parametrize(
    "passing", [nn.Identity(), nn.Dropout(0.0), nn.Sigmoid()], ids=lambda m: type(m).__name__
)
def test_what_a_module_hands_on_or_keeps_for_its_gradient_is_not_overwritten(passing):
    """Identity and a Dropout at rest return their input itself; a Sigmoid's gradient needs its output."""

    def forward(self, x):
        return self.relu(self.norm(self.passing(x)))

    model = apply(forward, passing=passing, norm=nn.BatchNorm2d(3), relu=nn.ReLU(inplace=True)).eval()
    expected = copy.deepcopy(model)
    assert place_norms(model, "after").moved == ["norm"]
    x, untouched = images().requires_grad_(), images().requires_grad_()
    y, want = model(x), expected.norm(F.relu(expected.passing(untouched)))
    assert torch.equal(x, untouched)
    for output in (y, want):
        output.square().sum().backward()
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(x.grad, untouched.grad)


def test_before_restores_to_the_bit():
    model, untouched = residual(), residual()
    x = images(dtype=torch.double)
    place_norms(model, "after")
    report = place_norms(model, "before")
    assert type(model) is Residual and "4 norms where the model was built with them" in str(report)
    assert_same(outcome(model, x), outcome(untouched, x))
    place_norms(model, "before")
    assert type(model) is Residual


def test_swaps_and_placements_in_either_order_are_one():
    first, second = residual(), residual()
    swap_norms(first, "gn", num_groups=2)
    place_norms(first, "after")
    place_norms(second, "after")
    report = swap_norms(second, "gn", num_groups=2)
    assert report.placement == "after" and "placement: after the activation" in str(report)
    x = images(dtype=torch.double)
    assert_same(outcome(first, x), outcome(second, x))
    swap_norms(second, "ws_bn")  # weight standardization in the moved network
    byhand = residual(Moved)
    swap_norms(byhand, "ws_bn")
    byhand.load_state_dict(second.state_dict())
    assert_near(outcome(second, x), outcome(byhand, x), 1e-12)
    place_norms(second, "before")
    swap_norms(second, "bn")
    assert type(second) is Residual


def test_a_kind_that_includes_the_activation_and_placement_exclude_each_other():
    model = residual()
    swap_norms(model, "frn")
    kind, erased = type(model), type(model).bnbench_rewriting.erased
    with pytest.raises(ValueError, match="norm is FilterResponseNorm2d, which includes the activation"):
        place_norms(model, "after")
    place_norms(model, "before")  # the ReLUs stay away
    assert type(model) is kind and erased == tuple(FOLLOWED)
    swap_norms(model, "bn")
    place_norms(model, "after")
    kind = type(model)
    with pytest.raises(ValueError, match=r'place_norms\(model, "before"\) first'):
        swap_norms(model, "evonorm_s0", num_groups=2)
    assert type(model) is kind


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(UntraceableError, match=r"Untraceable cannot be traced by torch\.fx"):
        place_norms(residual(Untraceable), "after")
    assert place_norms(residual(Untraceable), "before").moved == []
    with pytest.raises(ValueError, match="known: before, after"):
        place_norms(residual(), "behind")
    with pytest.raises(ValueError, match="holds no norm"):
        place_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "after")
    with pytest.raises(ValueError, match="would change nothing"):
        place_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.MaxPool2d(2)), "after")


def test_both_modes_are_moved_and_a_norm_shared_by_two_calls_only_as_a_whole():
    model = ByMode()
    assert place_norms(model, "after").moved == ["norm", "aux.1"]
    with torch.no_grad():
        for norm in (model.norm, model.aux[1]):
            norm.bias.fill_(-5.0)  # behind the ReLU it comes through
    assert model.eval()(images()).min() < -1
    torch.manual_seed(0)
    assert all(output.min() < -1 for output in model.train()(images()))
    shared = apply(lambda self, x: F.relu(self.norm(x)) + self.norm(x.neg()), norm=nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"\(followed by an addition\)"):
        place_norms(shared, "after")


# Norms that move, and that stay.
COUNTS = {
    ("resnet8",): (4, 3),
    ("resnet8", "preact"): (7, 0),
    ("cifar_densenet",): (12, 0),
    ("cifar_vgg11",): (8, 0),
    ("cifar_inception",): (19, 0),
    ("resnet18",): (9, 11),
    ("resnet50",): (33, 20),
    ("resnet50", "preact"): (49, 0),
    ("densenet121",): (121, 0),
    ("vgg11",): (8, 0),
    ("googlenet",): (59, 0),
    ("inception_v3",): (96, 0),
}


@pytest.mark.parametrize("form", COUNTS, ids="-".join)
def test_counts_on_our_models_and_torchvisions(form):
    name, *preact = form
    options = {"preact": True} if preact else {"depth": 13} if name == "cifar_densenet" else {}
    with torch.device("meta"):
        model = build_model(name, 5, **options)
    kind = type(model)
    report = place_norms(model, "after")
    assert (len(report.moved), len(report.stayed)) == COUNTS[form]
    record = json.loads(json.dumps(report.as_dict()))
    assert (record["placement"], record["moved"], record["stayed"]) == ("after", *COUNTS[form])
    assert sum(record["reasons"].values()) == len(report.stayed)
    assert f"placement after: {len(report.moved)} norms moved, {len(report.stayed)} stayed" in str(report)
    place_norms(model, "before")
    assert type(model) is kind


@pytest.mark.parametrize("name", ["googlenet", "densenet121"])
def test_a_large_network_trains_with_its_norms_moved(name):
    torch.manual_seed(0)
    model = build_model(name, 5)
    side = 64
    place_norms(model, "after")
    outputs = model(images(2, side))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().sum() for output in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
