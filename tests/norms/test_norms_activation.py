"""Kinds that include the activation: the ReLU behind them goes, in both modes; without one they run without."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.norms import (
    UntraceableError,
    build_norm,
    place_norms,
    swap_norms,
)
from tests.norms.small_nets import (
    FOLLOWED,
    NORMS_OF_RESIDUAL,
    ByMode,
    OwnActivation,
    Residual,
    Untraceable,
    WithoutRelu,
    apply,
    assert_near,
    assert_same,
    images,
    outcome,
    shaken,
)

pytestmark = pytest.mark.norms
OPTIONS: dict[str, dict[str, Any]] = {"evonorm_s0": {"num_groups": 2}}
ACTIVE = ("frn", "evonorm_s0", "evonorm_b0")


def residual(cls: type[Residual] = Residual) -> Residual:
    torch.manual_seed(0)
    return shaken(cls())


def test_a_users_own_activation_takes_the_place_of_the_relu():
    model = residual()
    report = swap_norms(model, "tests.norms.small_nets.OwnActivation")
    assert report.activations_removed == FOLLOWED and isinstance(model.norm, OwnActivation)
    byhand = residual(WithoutRelu)
    swap_norms(byhand, "tests.norms.small_nets.OwnActivation", **{})
    x = images()
    assert_near(outcome(model, x), outcome(byhand, x), 1e-6)
    assert_same(outcome(copy.deepcopy(model), x), outcome(model, x))


@pytest.mark.parametrize("kind", ACTIVE)
def test_the_relu_behind_goes_and_the_rest_runs_without_activation(kind):
    model, byhand = residual(), residual(WithoutRelu)
    report = swap_norms(model, kind, **OPTIONS.get(kind, {}))
    assert report.activations_removed == FOLLOWED
    assert report.without_activation == dict.fromkeys(["norm2", "shortcut.1"], "no ReLU behind it alone")
    assert [model.get_submodule(path).act for path in NORMS_OF_RESIDUAL] == [True, True, False, False]
    for path in NORMS_OF_RESIDUAL:
        norm = build_norm(kind, 6, act=path in FOLLOWED, **OPTIONS.get(kind, {}))
        norm.load_state_dict(model.get_submodule(path).state_dict())
        parent, _, name = path.rpartition(".")
        setattr(byhand.get_submodule(parent), name, norm)
    for training in (True, False):
        model.train(training), byhand.train(training)
        assert_near(outcome(model, images()), outcome(byhand, images()), 1e-6)
    swap_norms(model, "bn")
    untouched = residual()
    untouched.load_state_dict(model.state_dict())
    assert_same(outcome(model.train(), images()), outcome(untouched, images()))


RELUS = {
    "F.relu": lambda self, x: F.relu(self.norm(x)),
    "F.relu in place": lambda self, x: F.relu(self.norm(x), inplace=True),
    "F.relu_": lambda self, x: F.relu_(self.norm(x)),
    "torch.relu": lambda self, x: torch.relu(self.norm(x)),
    "torch.relu_": lambda self, x: torch.relu_(self.norm(x)),
    "method": lambda self, x: self.norm(x).relu(),
    "method in place": lambda self, x: self.norm(x).relu_(),
    "module": lambda self, x: self.relu(self.norm(x)),
}
NO_RELUS = {
    "another reader": lambda self, x: F.relu(y := self.norm(x)) + y,
    "another activation": lambda self, x: F.silu(self.norm(x)),
    "a statement": lambda self, x: (y := self.norm(x), y.relu_())[0],
    "in one mode": lambda self, x: F.relu(self.norm(x)) if self.training else self.norm(x),
    "nothing": lambda self, x: self.norm(x),
}


@pytest.mark.parametrize("words", [*RELUS, *NO_RELUS])
def test_a_relu_is_known_by_what_it_computes(words):
    model = apply({**RELUS, **NO_RELUS}[words], norm=nn.BatchNorm2d(3), relu=nn.ReLU(inplace=True))
    untouched = copy.deepcopy(model)
    report = swap_norms(model, "frn")
    assert report.activations_removed == (["norm"] if words in RELUS else [])
    assert model.norm.act == (words in RELUS)
    norm = copy.deepcopy(model.norm)
    x = images()
    if words in RELUS:
        assert torch.equal(model(x), norm(x))
    else:
        untouched.norm = norm
        assert torch.equal(model(x), untouched(x))


def test_without_a_graph_or_on_request_all_run_without_activation():
    model = residual(Untraceable)
    report = swap_norms(model, "frn")
    assert report.activations_removed == [] and type(model) is Untraceable
    assert report.without_activation == dict.fromkeys(NORMS_OF_RESIDUAL, "the model cannot be traced")
    assert len(report.general) == 1 and report.general[0] in str(report)
    assert report.general[0].startswith("Untraceable cannot be traced by torch.fx: ")
    assert not any(model.get_submodule(path).act for path in NORMS_OF_RESIDUAL)
    asked = residual()
    report = swap_norms(asked, "frn", act=False)
    assert type(asked) is Residual and report.activations_removed == [] and report.general == []
    assert_same(outcome(asked, images()), outcome(_untraceable_as(asked), images()))
    with pytest.raises(UntraceableError):
        swap_norms(residual(Untraceable), "none", init="zero_gamma")
    assert swap_norms(residual(Untraceable), "none", init="none").init is None


def _untraceable_as(model: nn.Module) -> nn.Module:
    eager = Residual()
    swap_norms(eager, "frn", act=False)
    eager.load_state_dict(model.state_dict())
    return eager


# (norms with a ReLU behind them, without)
TORCHVISION = {
    "resnet18": (9, 11),
    "resnet50": (33, 20),
    "densenet121": (121, 0),
    "vgg11_bn": (8, 0),
    "googlenet": (59, 0),
    "inception_v3": (96, 0),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_on_torchvisions_families(name):
    from torchvision import models

    heads = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vgg"):
        heads = {"init_weights": False}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None, **heads)
    kind = type(model)
    report = swap_norms(model, "evonorm_b0")
    assert (len(report.activations_removed), len(report.without_activation)) == TORCHVISION[name]
    assert type(model) is not kind and isinstance(model, kind)
    assert f"activations: {TORCHVISION[name][0]} ReLUs removed" in str(report)
    swap_norms(model, "bn")
    assert type(model) is kind


def test_an_identity_between_norm_and_relu_hides_nothing():
    """timm's ResNets have one there, where a DropBlock could be."""
    for kind in ("frn", "bn"):
        parts = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.Identity(), nn.ReLU()]
        model, byhand = nn.Sequential(*parts), nn.Sequential(*parts[:2])
        report = swap_norms(model, kind)
        if kind == "frn":
            assert report.activations_removed == ["1"]
            byhand[1] = model[1]
        else:
            assert place_norms(model, "after").moved == ["1"]
            byhand = nn.Sequential(model[0], nn.ReLU(), model[1])
        assert torch.equal(model(images()), byhand(images()))


def test_both_modes_lose_their_relus():
    model = ByMode()
    report = swap_norms(model, "frn")
    # The auxiliary head is called in training only; there its ReLU is behind it.
    assert report.activations_removed == ["norm", "aux.1"]
    with torch.no_grad():
        for norm in (model.norm, model.aux[1]):
            norm.tau.fill_(-9.0)  # so that only a ReLU would clip
    assert model.eval()(images()).min() < 0
    torch.manual_seed(0)
    x, aux = model.train()(images())
    assert x.min() < 0 and aux.min() < 0
