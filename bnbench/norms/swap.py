"""Replace every norm of a model in place, and say what was done."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .audit import Skip, Swap, SwapReport
from .base import Norm
from .channel import largest_groups
from .edits import relu_behind
from .graph import Traced, UntraceableError, check_rewritable, trace
from .places import FOREIGN_FEATURES, Place, norm_places
from .registry import WEIGHT_STANDARDIZED, build_norm, find_builder
from .residual import ResidualInit, branches_of, carry_out, plan_residual
from .rewrite import check_inner, rewrite, rewriting
from .settings import BUILT_AS, settings_for, settings_of
from .standardize import convs_by_order, convs_to_standardize
from .sync import SyncBatchNorm2d
from .virtual import VirtualBatchNet
from .weight import WSConv2d, plain

# What an initialized layer's weight was set to, and what it was before.
BEFORE_INIT = "bnbench_before_init"
# What a layer was told after it was built: by freeze_statistics, by VirtualBatchNet.
CARRIED_STATE = ("frozen", "num_reference")


def swap_norms(model: nn.Module, kind: str, **options: Any) -> SwapReport:
    """Replace every norm over the channels of (N, C, H, W) in `model` by `build_norm(kind, C, **options)`, in place.

    Those are BatchNorm2d, SyncBatchNorm, GroupNorm, InstanceNorm2d, torchvision's FrozenBatchNorm2d and
    LayerNorm2d, LayerNorm over (C, H, W), our own kinds and what an earlier swap put there; other norms are
    skipped with a reason. A layer that the model holds at several paths is replaced once, everywhere.

    Kept: device, dtype, train or eval mode, requires_grad, convolution weights to the bit; by name and where
    shapes agree affine parameters and running statistics (`num_batches_tracked` too, which is where `brn`'s
    schedule stands), whether parameters or buffers. What the new kind has no place for is gone, and the report
    counts it under `not_carried`: running statistics do not survive a GroupNorm, and start anew behind it.
    `eps` and `momentum` of `bn`, `syncbn`, `ghost`, `frozen` and `ws_bn`, `eps` and `num_groups` of `gn` and `ws_gn`
    are those that the model had last, and `process_group` from one SyncBatchNorm to another, unless they are given;
    other kinds have their own defaults. Frozen statistics stay frozen. Where `num_groups` does not divide a layer's
    channels the largest divisor below it is taken, and noted.

    FRN and EvoNorm include the activation: the ReLU that alone reads such a layer's output is taken out of the
    traced graph, in both modes. Where there is none, or torch.fx cannot follow the model, the layer runs with
    `act=False`; with that option given, all do. A user's own kind says so by `includes_activation = True`, and
    by an option `act` if it can do without. A later swap to another kind brings the ReLUs back. `ws_gn`
    and `ws_bn` make every Conv2d that a norm follows a WSConv2d, and other kinds make it a Conv2d again.
    `none` starts the residual branches as `init` says (`initialize_residual`). A placement stays as it is. What a
    rewritten model can no longer do is in `rewrite`'s page (`pydoc bnbench.norms.rewrite`).

    A swap that fails changes nothing. Raises ValueError for an unknown kind or option, a model that is a norm,
    holds none, is compiled or wrapped for training or for Virtual BN already, or (UntraceableError) has no graph
    for `init`; for a kind that includes the activation while the placement is `after`.
    """
    known = inspect.signature(find_builder(kind)).parameters
    defaults = {name: parameter.default for name, parameter in known.items()}
    check_rewritable(model)
    check_inner(model)
    if kind != "vbn" and any(isinstance(module, VirtualBatchNet) for module in model.modules()):
        raise ValueError(
            f"swap_norms: {kind} inside VirtualBatchNet would take the reference images for a part of the batch: swap "
            "the model inside, and leave the wrapper"
        )
    places, skipped = norm_places(model)
    if any(place.path == "" for place in places + skipped):
        raise ValueError("swap_norms: the model is a norm itself; call build_norm instead")
    if not places:
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise ValueError(
            f"swap_norms: {type(model).__name__} holds no BatchNorm2d or other norm over channels to replace{why}"
        )
    placement = rewriting(model).placement
    report = SwapReport(kind, type(model).__name__, placement=placement)
    report.skipped = [Skip(place.path, type(place.module).__name__, place.reason) for place in skipped]

    # Everything is made first, and the model changed last: a swap that fails changes nothing.
    first = _build(kind, places[0], options, defaults)[0]
    includes = getattr(first, "includes_activation", False)
    if includes and placement == "after":
        raise ValueError(
            f"swap_norms: {kind} includes the activation, and the model's placement is after it: "
            'place_norms(model, "before") first'
        )
    active = includes and getattr(first, "act", True)
    init = options.get("init", defaults["init"]) if kind == "none" else "none"
    standardizes = kind in WEIGHT_STANDARDIZED
    traced = None
    if placement == "after":
        traced = trace(model)
    elif active or standardizes:
        try:
            traced = trace(model)
        except UntraceableError as error:
            report.general.append(str(error))

    layers = {}
    for place in places:
        given = options
        if active:
            no_relu = _why_no_relu(traced, place.path)
            if not no_relu:
                report.activations_removed.append(place.path)
            elif "act" in defaults:
                report.without_activation[place.path] = no_relu
            if "act" in defaults:
                given = {**options, "act": not no_relu}
        layers[place.path], groups = _build(kind, place, given, defaults)
        if groups is not None:
            report.groups_changed[place.path] = groups
        _carry_over(place.module, layers[place.path], model, report)
        _note(report, place, layers[place.path])
    convs = _plan_convs(model, traced if standardizes else None, standardizes, list(layers), report)
    if init != "none":
        report.init = plan_residual(branches_of(model), init, layers.__getitem__)

    rewrite(model, placement, report.activations_removed, traced)
    for place in places:
        _put(model, place.paths, layers[place.path])
    for paths, conv in convs:
        _put(model, paths, conv)
    if report.init is not None:
        _start_branches(report.init, layers)
    return report


def _build(
    kind: str, place: Place, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[nn.Module, tuple[int, int] | None]:
    """The layer for a place, and the group count asked and taken where they differ."""
    known = settings_of(place.module)
    options = {**settings_for(kind, known), **options}
    if kind == "syncbn" and isinstance(place.module, nn.SyncBatchNorm | SyncBatchNorm2d):
        options.setdefault("process_group", place.module.process_group)
    asked, groups = options.get("num_groups", defaults.get("num_groups")), None
    if isinstance(asked, int) and asked > 0 and place.num_features % asked:
        options["num_groups"] = largest_groups(place.num_features, asked)
        groups = (asked, options["num_groups"])
    new = build_norm(kind, place.num_features, **options)
    if not isinstance(new, nn.Module):
        raise ValueError(f"norm {kind!r} must build an nn.Module; it gave a {type(new).__name__}")
    setattr(new, BUILT_AS, known)
    if isinstance(new, Norm):
        new.path = place.path
    else:
        setattr(new, FOREIGN_FEATURES, place.num_features)
    return new, groups


def _why_no_relu(traced: Traced | None, path: str) -> str:
    if traced is None:
        return "the model cannot be traced"
    return "" if relu_behind(traced, path) else "no ReLU behind it alone"


def _note(report: SwapReport, place: Place, new: nn.Module) -> None:
    """Report one replaced layer."""
    old, notes = place.module, []
    if place.path in report.groups_changed:
        asked, taken = report.groups_changed[place.path]
        notes.append(f"num_groups {taken}, not {asked}: {place.num_features} channels")
    if place.path in report.without_activation:
        notes.append(f"act=False: {report.without_activation[place.path]}")
    if old._forward_hooks or old._forward_pre_hooks or old._backward_hooks or old._backward_pre_hooks:
        notes.append("its hooks are gone with it")
    if getattr(old, "momentum", 0.0) is None and isinstance(mine := getattr(new, "momentum", None), float):
        notes.append(f"its cumulative average (momentum=None) is now a moving one, momentum={mine:g}")
    swap = Swap(place.path, type(old).__name__, type(new).__name__, place.num_features, "; ".join(notes))
    report.replaced.append(swap)
    for module, sign in ((new, 1), (old, -1)):
        report.parameters += sign * sum(p.numel() for p in module.parameters())
        report.buffers += sign * sum(b.numel() for b in module.buffers())


def _carry_over(old: nn.Module, new: nn.Module, model: nn.Module, report: SwapReport) -> None:
    """Give the new layer the old one's device, dtype, mode, and tensors of the same name and shape."""
    held: dict[str, Tensor] = {**dict(old.named_parameters()), **dict(old.named_buffers())}
    # Lazily: the model's own are asked only where the layer has none, as every layer of a deep net would else.
    floating = next(
        (t for ts in (held.values(), model.parameters()) for t in ts if t.is_floating_point()), None
    )
    if floating is not None:
        new.to(device=floating.device, dtype=floating.dtype)
    wanted = {**dict(new.named_parameters()), **dict(new.named_buffers())}
    value, untrained = getattr(old, BEFORE_INIT, (0.0, None))
    for name, tensor in wanted.items():
        mine = held.get(name)
        if mine is None or mine.shape != tensor.shape:
            report.fresh[name] += 1
            continue
        source = mine.detach()
        if name == "weight" and untrained is not None and bool((source == value).all()):
            source = untrained.to(source)
        tensor.data = source.clone()  # also its dtype: statistics may be fp32 beside weights that are not
        if isinstance(mine, nn.Parameter) and isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(mine.requires_grad)
    for name, tensor in held.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            report.not_carried[name] += 1
    new.train(old.training)
    for state in CARRIED_STATE:
        if hasattr(old, state) and hasattr(new, state):
            setattr(new, state, getattr(old, state))


def _plan_convs(
    model: nn.Module, traced: Traced | None, standardizes: bool, norms: list[str], report: SwapReport
) -> list[tuple[list[str], nn.Module]]:
    """The convolutions to put elsewhere than they are: standardized where a norm follows, plain otherwise."""
    chosen: list[str] = []
    if standardizes and traced is not None:
        chosen, report.not_standardized = convs_to_standardize(traced, norms)
    elif standardizes:
        chosen, report.not_standardized = convs_by_order(model, norms)
        report.general.append("weight standardization went by the order of modules, for want of a graph")
    report.standardized = chosen
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            paths.setdefault(module, []).append(path)
    changed: list[tuple[list[str], nn.Module]] = []
    for conv, held_at in paths.items():
        wanted = any(path in chosen for path in held_at)
        if wanted and not isinstance(conv, WSConv2d):
            assert isinstance(conv, nn.Conv2d)
            changed.append((held_at, WSConv2d.of(conv)))
        elif not wanted and isinstance(conv, WSConv2d):
            changed.append((held_at, plain(conv)))
            report.restored.append(held_at[0])
    return changed


def _put(model: nn.Module, paths: list[str] | tuple[str, ...], module: nn.Module) -> None:
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)


def _start_branches(init: ResidualInit, layers: dict[str, nn.Module]) -> None:
    """Carry out the initialization; the layers keep what they had, for a swap back before any training."""
    for path, value in init.weights.items():
        weight = layers[path].weight
        assert isinstance(weight, Tensor)
        setattr(layers[path], BEFORE_INIT, (value, weight.detach().clone()))
    carry_out(init, layers.__getitem__)
