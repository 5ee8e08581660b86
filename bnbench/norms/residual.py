"""Residual branches in a traced graph, and how they start where no norm holds them down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from .activation import activation_of, is_addition
from .edits import move_norms
from .graph import Traced, trace
from .identity import INITS, NoNorm2d
from .places import norm_places
from .rewrite import rewriting


@dataclass
class Branch:
    """The norms of one residual branch in order. `ends_in_norm`: no convolution or activation comes after them."""

    norms: list[str]
    ends_in_norm: bool


@dataclass
class ResidualInit:
    """What `initialize_residual` did: the value that each norm's weight starts at, by path."""

    scheme: str
    branches: int
    weights: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.branches:
            return f"init {self.scheme}: no residual branches, nothing to initialize"
        by_value: dict[float, int] = {}
        for value in self.weights.values():
            by_value[value] = by_value.get(value, 0) + 1
        values = ", ".join(f"{count} norms start at weight {value:.4g}" for value, count in by_value.items())
        return f"init {self.scheme}: {self.branches} residual branches" + (f", {values}" if values else "")

    def as_dict(self) -> dict[str, Any]:
        return {"scheme": self.scheme, "branches": self.branches, "words": str(self)}


def residual_branches(model: nn.Module) -> list[list[str]]:
    """For each addition in `model`, the paths of the norms in its residual branch, in order.

    The branch is what only one operand is made of, on the way from where both come from; of the two, that with
    more convolutions (then more norms, then the first operand). The shortcut, with or without a projection, is
    the other. [] for a network without additions. Raises UntraceableError where torch.fx cannot follow.
    """
    return [branch.norms for branch in branches_of(model)]


def branches_of(model: nn.Module, traced: Traced | None = None) -> list[Branch]:
    """`residual_branches`, with what an initialization must know; a moved norm is seen where it moved to."""
    traced = trace(model) if traced is None else traced
    norms = {place.path for place in norm_places(model)[0]}
    if rewriting(model).placement == "after":
        move_norms(traced, norms)
    graph, modules = traced.graphs[True], traced.modules
    nodes = list(graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    made_of: list[int] = []  # of each node, the bits of itself and of all it depends on
    for i, node in enumerate(nodes):
        bits = 1 << i
        for source in node.all_input_nodes:
            bits |= made_of[number[source]]
        made_of.append(bits)
    found = []
    for node in nodes:
        if not is_addition(node):
            continue
        left, right = (made_of[number[source]] for source in node.all_input_nodes)
        if not left & right:  # a bias, a position: nothing that both come from
            continue
        sides = [_members(nodes, left & ~right), _members(nodes, right & ~left)]
        side = max(sides, key=lambda side: (_count_convs(side, modules), _count(side, norms)))
        if _count_convs(side, modules):
            found.append(_branch(side, norms, modules))
    return found


def initialize_residual(model: nn.Module, scheme: str) -> ResidualInit:
    """Start the residual branches of `model` by `scheme`, through the weights of their norms, in place.

    `zero_gamma`: the last norm's weight is 0, and the branch with it (Goyal et al. 2017, section 5.1; for
    NoNorm2d this is SkipInit, De & Smith 2020, with a scale per channel). `fixup`: for NoNorm2d only; with L
    branches of m norms each, the weights are L^(-1/(2m - 2)) but for the last, which is 0 (Zhang, Dauphin &
    Ma 2019). Fixup scales the convolutions; here they stay bit-identical, and the norm behind each carries
    the factor. The function at the start is the same, while the convolutions' gradients are smaller by the
    factor; biases and multipliers are per channel where Fixup has scalars, and the classifier is not zeroed.

    In the pre-activation order, or where an activation follows the branch's last norm, a weight of 0 would
    never learn (ReLU has no gradient at 0). The branches are then scaled by L^(-1/2) as a whole instead
    (De & Smith 2020), by the last norm's weight in `zero_gamma`, by all of them equally in `fixup`.

    Raises UntraceableError where torch.fx cannot follow the model; ValueError for an unknown scheme, or a
    norm without a weight to train.
    """
    planned = plan_residual(branches_of(model) if scheme != "none" else [], scheme, model.get_submodule)
    carry_out(planned, model.get_submodule)
    return planned


def plan_residual(branches: list[Branch], scheme: str, layer: Callable[[str], nn.Module]) -> ResidualInit:
    """The weights that `scheme` asks for. `layer` gives the norm at a path."""
    if scheme not in INITS:
        raise ValueError(f"unknown residual initialization {scheme!r}; known: {', '.join(INITS)}")
    branches = [branch for branch in branches if branch.norms]
    plan = ResidualInit(scheme, len(branches))
    if scheme == "none":
        return plan
    count = len(branches)
    for branch in branches:
        m = len(branch.norms)
        if scheme == "zero_gamma":
            values = [1.0] * (m - 1) + [0.0 if branch.ends_in_norm else count**-0.5]
        elif branch.ends_in_norm:
            values = [count ** (-1 / (2 * m - 2)) if m > 1 else 1.0] * (m - 1) + [0.0]
        else:
            values = [count ** (-1 / (2 * m))] * m
        for path, value in zip(branch.norms, values, strict=True):
            norm = layer(path)
            if scheme == "fixup" and not isinstance(norm, NoNorm2d):
                raise ValueError(
                    f"init=fixup is for networks without norms, and {path} is {type(norm).__name__}, which undoes "
                    "any scale before it: choose init=zero_gamma"
                )
            if value != 1.0:
                if not isinstance(getattr(norm, "weight", None), nn.Parameter):
                    raise ValueError(
                        f"init={scheme} sets the weight of {path}, and {type(norm).__name__} there has none to "
                        "train: give it an affine part, or choose init=none"
                    )
                plan.weights[path] = value
    return plan


def carry_out(plan: ResidualInit, layer: Callable[[str], nn.Module]) -> None:
    with torch.no_grad():
        for path, value in plan.weights.items():
            weight = layer(path).weight
            assert isinstance(weight, nn.Parameter) and math.isfinite(value)
            weight.fill_(value)


def _members(nodes: list[fx.Node], bits: int) -> list[fx.Node]:
    return [node for i, node in enumerate(nodes) if bits >> i & 1]


def _is_conv(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], nn.modules.conv._ConvNd)


def _count_convs(side: list[fx.Node], modules: Mapping[str, nn.Module]) -> int:
    return sum(_is_conv(node, modules) for node in side)


def _count(side: list[fx.Node], norms: set[str]) -> int:
    return sum(node.op == "call_module" and node.target in norms for node in side)


def _branch(side: list[fx.Node], norms: set[str], modules: Mapping[str, nn.Module]) -> Branch:
    paths: list[str] = []
    ends_in_norm = False
    for node in side:
        if node.op == "call_module" and node.target in norms:
            paths.append(str(node.target))
            ends_in_norm = True
        elif _is_conv(node, modules) or activation_of(node, modules) is not None:
            ends_in_norm = False
    return Branch(paths, ends_in_norm)
