"""What a model's norms were built with, for a swap back: eps, momentum and group count, by family."""

from __future__ import annotations

from typing import Any

from torch import nn

from .batch import BatchNorm2d, GhostBatchNorm2d
from .channel import GroupNorm
from .frozen import FrozenBatchNorm2d
from .sync import SyncBatchNorm2d

BUILT_AS = "bnbench_built_as"
# The kinds of a family, its layers, and the settings that they share.
FAMILIES: dict[str, tuple[tuple[str, ...], tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "batch": (
        ("bn", "syncbn", "ghost", "frozen", "ws_bn"),
        (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm2d, GhostBatchNorm2d, SyncBatchNorm2d, FrozenBatchNorm2d),
        ("eps", "momentum"),
    ),
    "group": (("gn", "ws_gn"), (nn.GroupNorm, GroupNorm), ("eps", "num_groups")),
}


def remember(old: nn.Module, new: nn.Module) -> None:
    """Hand on to `new` what `old` was built with, and what it had been handed."""
    known: dict[str, dict[str, Any]] = dict(getattr(old, BUILT_AS, {}))
    for family, (_, layers, names) in FAMILIES.items():
        if type(old) in layers:
            found = {name: getattr(old, name, None) for name in names}
            known[family] = known.get(family, {}) | {k: v for k, v in found.items() if v is not None}
    setattr(new, BUILT_AS, known)


def remembered(kind: str, old: nn.Module) -> dict[str, Any]:
    """The settings that a layer of `kind` in the place of `old` takes where none are given."""
    holder = nn.Module()
    remember(old, holder)
    known: dict[str, dict[str, Any]] = getattr(holder, BUILT_AS)
    for family, (kinds, _, _) in FAMILIES.items():
        if kind in kinds:
            return dict(known.get(family, {}))
    return {}
