"""Which convolutions a swap standardizes: those that a norm follows, since the scale of the others matters."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx, nn
from torch.nn import functional as F

from .activation import activation_of, is_addition
from .graph import Traced
from .weight import WSConv2d

# What a convolution's output may pass on its way to a norm.
PASSING_MODULES = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.dropout._DropoutNd, nn.modules.padding._ConstantPadNd,
    nn.Identity, nn.Upsample,
)  # fmt: skip
PASSING_FUNCTIONS = {
    torch.cat, torch.concat, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.max_pool2d, F.dropout, F.dropout2d, F.pad, F.interpolate, operator.getitem,
}  # fmt: skip


def convs_to_standardize(traced: Traced, norms: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The paths of the convolutions that a norm at `norms` follows, and the others with reasons.

    On every way from the convolution, in both modes, a norm comes next: directly, or after concatenation,
    pooling, dropout, padding, activation or addition only.
    """
    standardized, others = [], {}
    reaches: dict[fx.Node, bool] = {}
    for path, module in traced.modules.items():
        if not isinstance(module, nn.Conv2d):
            continue
        calls = traced.calls(path)
        reason = why_not_standardized(module)
        if not reason and not calls:
            reason = "never called, or inside a module of torch.nn"
        if not reason and not all(_reaches_norm(call, traced, norms, reaches) for call in calls):
            reason = "not followed by a norm on every way"
        if reason:
            others[path] = reason
        else:
            standardized.append(path)
    return standardized, others


def convs_by_order(model: nn.Module, norms: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The same for a model without a graph: a convolution whose next sibling is a norm of its channels."""
    standardized, others = [], {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        parent, _, name = path.rpartition(".")
        siblings = list(model.get_submodule(parent).named_children())
        following = [key for key, _ in siblings][[key for key, _ in siblings].index(name) + 1 :][:1]
        next_path = ".".join(filter(None, [parent, *following]))
        reason = why_not_standardized(module)
        if not reason and not (following and next_path in norms and _fits(module, model, next_path)):
            reason = "its next sibling is no norm of its channels"
        if reason:
            others[path] = reason
        else:
            standardized.append(path)
    return standardized, others


def why_not_standardized(conv: nn.Conv2d) -> str:
    if type(conv) not in (nn.Conv2d, WSConv2d):
        return f"{type(conv).__name__} has a forward of its own"
    return "one weight a filter has no variance" if conv.weight[0].numel() == 1 else ""


def _fits(conv: nn.Conv2d, model: nn.Module, norm_path: str) -> bool:
    norm = model.get_submodule(norm_path)
    channels = getattr(norm, "num_features", getattr(norm, "num_channels", conv.out_channels))
    return channels == conv.out_channels


def _reaches_norm(node: fx.Node, traced: Traced, norms: Collection[str], known: dict[fx.Node, bool]) -> bool:
    """Whether every reader of `node` is a norm, or passes it on to norms only."""
    waiting = [node]
    while waiting:  # no recursion: a deep network's chain of additions would exceed Python's limit
        last = waiting[-1]
        undecided = [
            u for u in last.users if not _is_norm(u, norms) and _passes(u, traced) and u not in known
        ]
        if undecided:
            waiting.extend(undecided)
            continue
        known[last] = bool(last.users) and all(_is_norm(u, norms) or known.get(u, False) for u in last.users)
        waiting.pop()
    return known[node]


def _is_norm(node: fx.Node, norms: Collection[str]) -> bool:
    return node.op == "call_module" and node.target in norms


def _passes(node: fx.Node, traced: Traced) -> bool:
    if activation_of(node, traced.modules) is not None or is_addition(node):
        return True
    if node.op == "call_module":
        return isinstance(traced.modules[str(node.target)], PASSING_MODULES)
    return node.op == "call_function" and node.target in PASSING_FUNCTIONS
