"""What a model's norms were built with, for a swap back: eps, momentum and group count, by family."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import TORCHVISION_NORMS
from .batch import BatchNorm2d, GhostBatchNorm2d
from .channel import GroupNorm
from .frozen import FrozenBatchNorm2d
from .sync import SyncBatchNorm2d

# The attribute of a layer that holds them, by family.
BUILT_AS = "bnbench_built_as"
# The kinds of a family, its layers, and the settings that they share.
FAMILIES: dict[str, tuple[tuple[str, ...], tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "batch": (
        ("bn", "syncbn", "ghost", "frozen", "ws_bn"),
        (
            nn.BatchNorm2d, nn.SyncBatchNorm, *TORCHVISION_NORMS,
            BatchNorm2d, GhostBatchNorm2d, SyncBatchNorm2d, FrozenBatchNorm2d,
        ),
        ("eps", "momentum"),
    ),
    "group": (("gn", "ws_gn"), (nn.GroupNorm, GroupNorm), ("eps", "num_groups")),
}  # fmt: skip


def settings_of(layer: nn.Module) -> dict[str, dict[str, Any]]:
    """By family, what `layer` was built with, and what it was handed by the layers that it replaced."""
    known: dict[str, dict[str, Any]] = dict(getattr(layer, BUILT_AS, {}))
    for family, (_, layers, names) in FAMILIES.items():
        if type(layer) in layers:
            found = {name: getattr(layer, name, None) for name in names}
            known[family] = known.get(family, {}) | {k: v for k, v in found.items() if v is not None}
    return known


def settings_for(kind: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Those that a layer of `kind` takes where none are given."""
    family = next((family for family, (kinds, _, _) in FAMILIES.items() if kind in kinds), "")
    settings = known.get(family, {})
    # torchvision's detection models freeze with eps=0, with which torch trains no batch norm.
    return {name: value for name, value in settings.items() if value > 0 or kind == "frozen"}
