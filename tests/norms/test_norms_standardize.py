"""Weight standardization goes to the convolutions that a norm follows, and to no other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.models import build_model
from bnbench.norms import WSConv2d, swap_norms
from tests.norms.small_nets import Residual, Untraceable, apply, images, state_of

pytestmark = pytest.mark.norms
KINDS = pytest.mark.parametrize("kind", ["ws_gn", "ws_bn"])


def standardized(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if type(module) is WSConv2d]


def convolutions(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]


# What is left out: what no norm follows on every way.
LEFT_OUT = {
    "resnet8": [],
    "resnet18": [],
    "vgg11": [],
    "cifar_vgg11": [],
    "cifar_inception": [],  # through concatenation and pooling
    "densenet121": [],
    "googlenet": [],
    "inception_v3": [],
}


@KINDS
@pytest.mark.parametrize("name", LEFT_OUT)
def test_every_convolution_of_the_families_is_followed_by_a_norm(name, kind):
    with torch.device("meta"):
        model = build_model(name, 5)
    before = {key: tensor.shape for key, tensor in model.state_dict().items()}
    weights = {path: model.get_submodule(path).weight for path in convolutions(model)}
    report = swap_norms(model, kind)
    left = [path for path in convolutions(model) if path not in report.standardized]
    assert standardized(model) == report.standardized
    assert left == list(report.not_standardized) == LEFT_OUT[name]
    assert all(model.get_submodule(path).weight is weight for path, weight in weights.items())
    if kind == "ws_bn":
        assert {key: tensor.shape for key, tensor in model.state_dict().items()} == before
    report = swap_norms(model, "bn")
    assert standardized(model) == [] and report.restored == convolutions(model)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == before
    assert all(model.get_submodule(path).weight is weight for path, weight in weights.items())


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_in_the_pre_activation_order_projections_and_last_convolutions_have_a_norm_behind_the_sums(name):
    model = build_model(name, 5, preact=True)
    report = swap_norms(model, "ws_gn")
    assert report.not_standardized == {}
    untouched = build_model(name, 5, preact=True)
    assert len(report.standardized) == len(convolutions(untouched))


def test_which_convolutions_a_norm_follows():
    parts = {
        "stem": nn.Conv2d(3, 4, 1),  # its bias too stays
        "a": nn.Conv2d(4, 4, 1),
        "b": nn.Conv2d(4, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "split": nn.Conv2d(8, 8, 1),  # one of its two ways has no norm
        "norm2": nn.BatchNorm2d(8),
        "depthwise": nn.Conv2d(8, 8, 1, groups=8),  # one weight a filter
        "norm3": nn.BatchNorm2d(8),
        "gate": nn.Conv2d(8, 8, 1),
        "own": type("Own", (nn.Conv2d,), {"forward": lambda self, x: nn.Conv2d.forward(self, x) * 2})(
            8, 8, 1
        ),
        "norm4": nn.BatchNorm2d(8),
        "never": nn.Conv2d(8, 8, 1),
        "classifier": nn.Conv2d(8, 5, 1),
    }

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = self.norm(torch.cat([self.a(x), F.dropout(self.b(x), 0.5, self.training)], 1))
        y = self.split(x)
        x = self.norm3(self.depthwise(self.norm2(y))) + y
        x = x * torch.sigmoid(self.gate(x))
        return self.classifier(self.norm4(self.own(x)))

    model = apply(forward, **parts)
    reasons = swap_norms(model, "ws_gn", num_groups=2).not_standardized
    # The stem's way leads to other convolutions, not to a norm.
    assert standardized(model) == ["a", "b"]
    assert reasons == {
        "stem": "not followed by a norm on every way",
        "split": "not followed by a norm on every way",
        "depthwise": "one weight a filter has no variance",
        "gate": "not followed by a norm on every way",
        "own": "Own has a forward of its own",
        "never": "never called, or inside a module of torch.nn",
        "classifier": "not followed by a norm on every way",
    }


@KINDS
def test_the_forward_is_that_of_standardized_filters_and_goes_back_to_the_bit(kind):
    torch.manual_seed(0)
    model = Residual().double()
    plain = copy.deepcopy(model)
    keys = list(model.state_dict())
    swap_norms(model, kind, **({"num_groups": 2} if kind == "ws_gn" else {}))
    byhand = copy.deepcopy(plain)
    swap_norms(byhand, kind.removeprefix("ws_"), **({"num_groups": 2} if kind == "ws_gn" else {}))
    assert list(model.state_dict()) == list(byhand.state_dict())
    assert kind == "ws_gn" or list(model.state_dict()) == keys
    with torch.no_grad():
        for path in ("stem", "conv1", "conv2", "shortcut.0"):
            weight = byhand.get_submodule(path).weight
            var, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
            weight.copy_((weight - mean) / (var + 1e-6).sqrt())
    x = images(dtype=torch.double)
    torch.testing.assert_close(model(x), byhand(x), rtol=1e-10, atol=1e-10)
    swap_norms(model, "bn")
    assert [type(m) for m in model.modules() if isinstance(m, nn.Conv2d)] == [nn.Conv2d] * 4
    swap_norms(plain, "bn")
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x), plain(x))


def test_a_convolution_keeps_its_hooks_both_ways():
    model, seen = Residual(), []
    model.conv1.register_forward_hook(lambda *_: seen.append("conv1"))
    swap_norms(model, "ws_bn")
    model(images())
    swap_norms(model, "bn")
    model(images())
    assert seen == ["conv1", "conv1"]
    handle = model.conv1.register_forward_hook(lambda *_: seen.append("gone"))
    swap_norms(model, "ws_bn")
    handle.remove()
    model(images())
    assert "gone" not in seen


def test_without_a_graph_the_order_of_modules_decides_and_the_report_says_so():
    model = Untraceable()
    model.other = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(6))
    before = state_of(model)
    report = swap_norms(model, "ws_bn")
    assert standardized(model) == report.standardized == ["stem", "conv1", "conv2", "shortcut.0"]
    assert report.not_standardized == dict.fromkeys(
        ["other.0", "other.2"],  # a ReLU comes next, a norm of other channels
        "its next sibling is no norm of its channels",
    )
    assert "weight standardization went by the order of modules, for want of a graph" in report.general
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
