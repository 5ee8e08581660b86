"""A swap replaces every norm and nothing else, says what it did, goes back, and fails without a trace."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d as ConvNextLayerNorm
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozen

from bnbench.norms import (
    NORM_TYPES,
    NORMS,
    VirtualBatchNet,
    WSConv2d,
    swap_norms,
)
from tests.norms.small_nets import (
    NORMS_OF_RESIDUAL,
    Doubling,
    Residual,
    assert_same,
    images,
    outcome,
    same_state,
    shaken,
    state_of,
)

pytestmark = pytest.mark.norms
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost": {"ghosts": 2},
    "gn": {"num_groups": 2},
    "ws_gn": {"num_groups": 3},
    "evonorm_s0": {"num_groups": 2},
}
TRACKING = {"bn", "syncbn", "ghost", "brn", "frozen", "ws_bn"}
every_kind = pytest.mark.parametrize("kind", NORMS)


def residual(cls: type[Residual] = Residual) -> Residual:
    torch.manual_seed(0)
    return shaken(cls())


def of_norms(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, NORM_TYPES)}


def runnable(model: nn.Module, kind: str) -> nn.Module:
    return VirtualBatchNet(model, images(2)) if kind == "vbn" else model


@every_kind
def test_a_swap_changes_norms_only_and_goes_back(kind):
    model = residual()
    before, parts = state_of(model), dict(model.named_modules())
    swap_norms(model, kind, **OPTIONS.get(kind, {}))
    assert of_norms(model).keys() == of_norms(residual()).keys()
    weights = dict(model.named_parameters())
    for path, part in parts.items():
        if isinstance(part, nn.Conv2d):  # the same Parameter, whatever class holds it
            assert weights[f"{path}.weight"] is part.weight
            assert torch.equal(part.weight, before[f"{path}.weight"])
    swap_norms(model, "bn")
    after = state_of(model)
    assert type(model) is Residual and all(type(m) is not WSConv2d for m in model.modules())
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        of_statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        carried = not of_statistics or kind in TRACKING
        if kind == "evonorm_b0" and not name.endswith("running_mean"):
            carried = True
        assert torch.equal(after[name], tensor) or not carried, name
    model.load_state_dict(before)
    assert_same(outcome(model, images()), outcome(residual(), images()))


@pytest.fixture(scope="module")
def of_each_kind() -> dict[str, nn.Module]:
    models = {}
    for kind in NORMS:
        models[kind] = residual()
        swap_norms(models[kind], kind, **OPTIONS.get(kind, {}))
        shaken(models[kind])
    return models


@every_kind
def test_from_every_kind_the_result_is_a_network_built_with_the_new_kind(kind, of_each_kind):
    built = copy.deepcopy(of_each_kind[kind])
    for start in NORMS:
        model = copy.deepcopy(of_each_kind[start])
        swap_norms(model, kind, **OPTIONS.get(kind, {}))
        built.load_state_dict(model.state_dict())
        types = [{path: type(part) for path, part in each.named_modules() if path} for each in (model, built)]
        assert types[0] == types[1]
        x = images(4)
        assert torch.equal(runnable(model, kind)(x), runnable(built, kind)(x)), start


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_mode_and_requires_grad_are_kept(kind, dtype):
    model = residual().to(dtype)
    model.norm1.eval()
    model.norm2.weight.requires_grad_(False)
    swap_norms(model, kind, **OPTIONS.get(kind, {}))
    for path, norm in of_norms(model).items():
        tensors = [*norm.parameters(), *norm.buffers()]
        assert all(t.dtype == dtype for t in tensors if t.is_floating_point())
        assert norm.training == (path != "norm1")
        weight = norm.weight
        assert not isinstance(weight, nn.Parameter) or weight.requires_grad == (path != "norm2")


def test_device_and_memory_format_are_kept():
    model = Residual().to("meta", memory_format=torch.channels_last)
    swap_norms(model, "gn", num_groups=2)
    assert all(p.is_meta for p in model.parameters())
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    model = residual().to(memory_format=torch.channels_last)
    swap_norms(model, "ws_bn")
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert (
        model.conv1.weight.stride() == residual().to(memory_format=torch.channels_last).conv1.weight.stride()
    )


def test_statistics_keep_a_dtype_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16()
    model[1].running_var.data = torch.full((4,), 1.001)
    swap_norms(model, "bn", ghosts=2)
    assert model[1].weight.dtype == torch.bfloat16
    assert model[1].running_var.dtype == torch.float32 and torch.equal(
        model[1].running_var, torch.full((4,), 1.001)
    )


SOURCES: dict[str, nn.Module] = {
    "torchvision's frozen": TorchvisionFrozen(4, eps=0.0),
    "sync": nn.SyncBatchNorm(4, eps=1e-3, momentum=0.3),
    "instance": nn.InstanceNorm2d(4),
    "instance with all": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group": nn.GroupNorm(2, 4),
    "layer over CHW": nn.LayerNorm([4, 6, 6]),
    "ConvNeXt's": ConvNextLayerNorm([4]),
    "bare batch": nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "cumulative batch": nn.BatchNorm2d(4, momentum=None),
}


@pytest.mark.parametrize("source", SOURCES)
def test_norms_of_torch_and_torchvision_are_sources(source):
    old = shaken(copy.deepcopy(SOURCES[source]))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), old)
    held = dict(old.named_parameters()) | dict(old.named_buffers())
    report = swap_norms(model, "bn")
    assert [swap.old for swap in report.replaced] == [type(old).__name__]
    new = dict(model[1].named_parameters()) | dict(model[1].named_buffers())
    for name, tensor in new.items():
        if name in held and held[name].shape == tensor.shape:
            assert torch.equal(tensor, held[name])
        else:
            assert report.fresh[name] == 1
    assert set(report.not_carried) == {n for n in held if n not in new or new[n].shape != held[n].shape}
    assert model(images()).shape == (3, 4, 6, 6)


def test_settings_survive_a_detour():
    model = nn.Sequential(
        nn.BatchNorm2d(12, eps=1e-3, momentum=0.4), TorchvisionFrozen(12, eps=0.0), nn.GroupNorm(3, 12)
    )
    swap_norms(model, "evonorm_b0")
    swap_norms(model, "frozen")
    assert [(m.eps) for m in model] == [1e-3, 0.0, 1e-5]
    swap_norms(model, "bn")
    assert [(m.eps, m.momentum) for m in model] == [(1e-3, 0.4), (1e-5, 0.1), (1e-5, 0.1)]
    swap_norms(model, "gn")
    assert [m.num_groups for m in model] == [12, 12, 3]  # 32 asked by default; the last as it was
    swap_norms(model, "bn", eps=1e-2)
    assert [m.eps for m in model] == [1e-2] * 3


def test_a_frozen_network_of_torchvision_runs_as_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shaken(TorchvisionFrozen(4, eps=1e-2)))
    y = model(images())
    swap_norms(model, "frozen")
    torch.testing.assert_close(model(images()), y, rtol=1e-5, atol=1e-5)


def test_a_shared_layer_is_replaced_once_and_stays_shared():
    norm = nn.BatchNorm2d(4)
    shared = nn.Sequential(nn.Conv2d(4, 4, 1), norm)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), shared, nn.ReLU(), shared)
    report = swap_norms(model, "frn")
    assert [swap.path for swap in report.replaced] == ["1"]
    assert model[1] is model[3][1] is model[5][1]
    # Its last call has no ReLU behind it, so that none of them may run the activation.
    assert not model[1].act and report.activations_removed == []
    swap_norms(model, "ws_bn")
    assert type(shared[0]) is WSConv2d and model[3] is model[5]


def test_norms_over_other_dimensions_are_skipped_with_a_reason():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    model = nn.ModuleDict({
        "a": nn.BatchNorm2d(4), "b": nn.BatchNorm1d(4), "c": nn.LayerNorm(8), "d": Own(4), "e": nn.LazyBatchNorm2d()
    })  # fmt: skip
    kept = {path: model[path] for path in "bcde"}
    report = swap_norms(model, "gn", num_groups=2)
    assert [swap.path for swap in report.replaced] == ["a"]
    assert {skip.path: skip.kind for skip in report.skipped} == {p: type(m).__name__ for p, m in kept.items()}
    assert all(skip.reason for skip in report.skipped) and all(model[p] is m for p, m in kept.items())
    assert "skipped: 1 LayerNorm (c): its shape (8,) does not say which dimension holds channels" in str(
        report
    )


def test_what_cannot_be_swapped_is_refused():
    with pytest.raises(ValueError, match="is a norm itself"):
        swap_norms(nn.BatchNorm2d(4), "gn")
    with pytest.raises(ValueError, match="holds no BatchNorm2d"):
        swap_norms(nn.Sequential(nn.Conv2d(3, 4, 1)), "gn")
    with pytest.raises(ValueError, match=r"to replace \(1: BatchNorm1d normalizes no"):
        swap_norms(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "gn")


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        ("nonesuch", {}, ValueError, "known: bn, syncbn"),
        ("gn", {"groups": 2}, ValueError, "known: num_groups, eps"),
        ("tests.norms.small_nets.nonesuch", {}, ValueError, "cannot be imported"),
        ("tests.norms.small_nets.failing", {}, RuntimeError, "no seven"),
        ("tests.norms.small_nets.images", {}, ValueError, "must build an nn.Module"),
        ("none", {"init": "nonesuch"}, ValueError, "known: none, zero_gamma, fixup"),
        ("none", {"affine": False, "init": "fixup"}, ValueError, "none to train"),
        ("brn", {"r_max": 0.5}, ValueError, "at least 1"),
    ],
)
def test_a_swap_that_fails_changes_nothing(kind, options, error, words):
    model = Residual()
    model.more = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(7))  # the last one fails
    swap_norms(model, "frn")
    before, modules, kind_before = state_of(model), dict(model.named_modules()), type(model)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with pytest.raises(error, match=words):
        swap_norms(model, kind, **options)
    assert torch.equal(torch.rand(1), expected)
    assert dict(model.named_modules()) == modules and type(model) is kind_before
    assert same_state(state_of(model), before)


def test_group_counts_fall_back_to_a_divisor_and_the_report_says_so():
    model = nn.Sequential(nn.BatchNorm2d(12), nn.BatchNorm2d(16), nn.BatchNorm2d(7))
    report = swap_norms(model, "gn", num_groups=8)
    assert [m.num_groups for m in model] == [6, 8, 7]
    assert report.groups_changed == {"0": (8, 6), "2": (8, 7)}
    assert report.notes() == ["0: num_groups 6, not 8: 12 channels", "2: num_groups 7, not 8: 7 channels"]
    assert report.as_dict()["groups_changed"] == 2


def test_a_users_own_norm_goes_in_and_out_with_what_is_inside_it():
    model = residual()
    report = swap_norms(model, "tests.norms.small_nets.Doubling", factor=3.0)
    assert [swap.new for swap in report.replaced] == ["Doubling"] * 4
    assert all(isinstance(model.get_submodule(path), Doubling) for path in NORMS_OF_RESIDUAL)
    assert model.norm.factor == 3.0
    report = swap_norms(model, "gn", num_groups=2)  # the inner norms are no places of their own
    assert [swap.path for swap in report.replaced] == NORMS_OF_RESIDUAL
    assert not any("inner" in path for path, _ in model.named_modules())


def test_hooks_on_a_norm_are_noted():
    model = residual()
    model.norm1.register_full_backward_pre_hook(lambda *_: None)
    model.norm2.register_forward_hook(lambda *_: None)
    report = swap_norms(model, "gn", num_groups=2)
    assert report.notes() == ["norm1, norm2: its hooks are gone with it"]


@every_kind
def test_the_report_counts_what_is_there(kind):
    model = residual()
    count = lambda: (  # noqa: E731
        sum(p.numel() for p in model.parameters()), sum(b.numel() for b in model.buffers())
    )  # fmt: skip
    before = count()
    report = swap_norms(model, kind, **OPTIONS.get(kind, {}))
    after = count()
    assert (report.parameters, report.buffers) == (after[0] - before[0], after[1] - before[1])
    record = json.loads(json.dumps(report.as_dict()))
    assert (record["kind"], record["replaced"], record["parameters"]) == (kind, 4, report.parameters)
    assert record["first"]["old"] == "BatchNorm2d"
    text = str(report)
    assert f"Residual: 4 norms replaced by {kind}" in text
    assert f"parameters {report.parameters:+,}, buffers {report.buffers:+,}" in text
    rows = [line.split() for line in text.splitlines()[2:] if line.split()[0].isdigit()]
    assert sum(int(row[0]) for row in rows) == 4
