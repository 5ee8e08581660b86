"""The two edits of a traced graph: a ReLU taken out behind a norm, and a norm moved behind its activation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx, nn
from torch.nn import functional as F

from .activation import Activation, activation_of, follower, only_user
from .graph import Traced

# Nothing else reads what these return, neither a view of it nor a backward pass: it may be overwritten.
FRESH = (nn.modules.conv._ConvNd, nn.Linear)
FRESH_FUNCTIONS = (F.conv2d, F.linear)


def activation_behind(call: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[fx.Node, Activation] | None:
    """The activation that alone reads the output of a norm's call."""
    user = only_user(call, modules)
    found = None if user is None else activation_of(user, modules)
    return None if user is None or found is None else (user, found)


def relu_behind(traced: Traced, path: str) -> bool:
    """Whether at every call of the norm at `path`, in both modes, a ReLU alone reads its output."""
    modules, calls = traced.modules, traced.calls(path)
    behind = [activation_behind(call, modules) for call in calls]
    return bool(behind) and all(found is not None and found[1].is_relu for found in behind)


def erase_relus(traced: Traced, paths: Collection[str]) -> list[str]:
    """Take out the ReLU behind each norm at `paths` that has one at all its calls; return those."""
    erased = [path for path in traced.modules if path in paths and relu_behind(traced, path)]
    for path in erased:
        for call in traced.calls(path):
            relu = only_user(call, traced.modules)
            assert relu is not None
            relu.replace_all_uses_with(relu.all_input_nodes[0])
            relu.graph.erase_node(relu)
    return erased


def why_not_moved(traced: Traced, path: str) -> str:
    """Why the norm at `path` stays before what follows it; "" if an activation does, at all its calls."""
    modules, calls = traced.modules, traced.calls(path)
    if not calls:
        return "never called, or inside a module of torch.nn"
    followers = [follower(call, modules) for call in calls if activation_behind(call, modules) is None]
    return f"followed by {followers[0]}" if followers else ""


def move_norms(traced: Traced, paths: Collection[str]) -> list[str]:
    """Move each norm at `paths` behind the activation that alone reads it; return those that moved.

    conv -> norm -> relu becomes conv -> relu -> norm. An activation in place is kept in place only where it
    overwrites what nobody else can read.
    """
    modules = traced.modules
    moved = [path for path in modules if path in paths and not why_not_moved(traced, path)]
    for path in moved:
        for call in traced.calls(path):
            behind = activation_behind(call, modules)
            assert behind is not None
            _move(call, *behind, modules)
    return moved


def _move(norm: fx.Node, node: fx.Node, activation: Activation, modules: Mapping[str, nn.Module]) -> None:
    (source,) = norm.all_input_nodes
    graph = norm.graph
    with graph.inserting_before(norm):
        if activation.inplace and not _may_overwrite(source, modules):
            moved = graph.call_function(activation.function, (source,), activation.options)
        else:
            moved = graph.node_copy(node, lambda _: source)
    norm.replace_input_with(source, moved)
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)


def _may_overwrite(source: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if len(source.users) > 1:  # others than the norm
        return False
    if source.op == "call_module":
        return isinstance(modules[str(source.target)], FRESH)
    return source.op == "call_function" and source.target in FRESH_FUNCTIONS
