"""Activations in a traced graph: modules, functions and methods, in place or not, told by what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

# A module's functional form, and the attributes that it takes as options.
MODULES: dict[type[nn.Module], tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.ReLU: (F.relu, ()),
    nn.ReLU6: (F.relu6, ()),
    nn.LeakyReLU: (F.leaky_relu, ("negative_slope",)),
    nn.ELU: (F.elu, ("alpha",)),
    nn.SiLU: (F.silu, ()),
    nn.Mish: (F.mish, ()),
    nn.GELU: (F.gelu, ("approximate",)),
    nn.Hardswish: (F.hardswish, ()),
}
# A function's out-of-place form, and the names of its arguments after the input.
FUNCTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], tuple[str, ...]]] = {
    F.relu: (F.relu, ("inplace",)),
    torch.relu: (F.relu, ()),
    F.relu6: (F.relu6, ("inplace",)),
    F.leaky_relu: (F.leaky_relu, ("negative_slope", "inplace")),
    F.elu: (F.elu, ("alpha", "inplace")),
    F.silu: (F.silu, ("inplace",)),
    F.mish: (F.mish, ("inplace",)),
    F.gelu: (F.gelu, ()),
    F.hardswish: (F.hardswish, ("inplace",)),
}
IN_PLACE_FUNCTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], tuple[str, ...]]] = {
    torch.relu_: (F.relu, ()),
    F.leaky_relu_: (F.leaky_relu, ("negative_slope",)),
    F.elu_: (F.elu, ("alpha",)),
}
METHODS: dict[str, tuple[Callable[..., Any], bool]] = {"relu": (F.relu, False), "relu_": (F.relu, True)}
ADDITIONS = {"add", "iadd", "add_", "__add__", "__iadd__", "__radd__"}


@dataclass(frozen=True)
class Activation:
    """What a node computes: `function(input, **options)`, whether or not it overwrites its input."""

    function: Callable[..., Any]
    options: dict[str, Any]
    inplace: bool

    @property
    def is_relu(self) -> bool:
        return self.function is F.relu


def activation_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Activation | None:
    """The activation that `node` is, or None."""
    if len(node.all_input_nodes) != 1:  # also a slope that the network computes
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) not in MODULES:
            return None
        function, names = MODULES[type(module)]
        options = {name: getattr(module, name) for name in names}
        return Activation(function, options, getattr(module, "inplace", False))
    if node.op == "call_method" and node.target in METHODS:
        function, overwrites = METHODS[str(node.target)]
        return Activation(function, {}, overwrites)
    if node.op == "call_function" and callable(node.target):
        overwrites = node.target in IN_PLACE_FUNCTIONS
        known = IN_PLACE_FUNCTIONS if overwrites else FUNCTIONS
        if node.target not in known:
            return None
        function, names = known[node.target]
        options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        options.pop("input", None)
        return Activation(function, options, bool(options.pop("inplace", False)) or overwrites)
    return None


def only_user(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The one node that reads `node`'s output, if there is just one; past any nn.Identity."""
    while len(node.users) == 1:
        (user,) = node.users
        if not (user.op == "call_module" and type(modules[str(user.target)]) is nn.Identity):
            return user
        node = user
    return None


def is_addition(node: fx.Node) -> bool:
    """Whether `node` adds two tensors of the network."""
    name = getattr(node.target, "__name__", node.target)
    return (
        node.op in ("call_function", "call_method") and name in ADDITIONS and len(node.all_input_nodes) == 2
    )


def follower(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """What reads `node`, in words for a report."""
    user = only_user(node, modules)
    if user is None:
        return f"{len(node.users)} readers" if node.users else "nothing"
    if is_addition(user):
        return "an addition"
    if user.op == "call_module":
        return type(modules[str(user.target)]).__name__
    return "the output" if user.op == "output" else str(getattr(user.target, "__name__", user.target))
