"""Normalization layers for CNNs, in pure torch; importable without the rest of bnbench."""

from .base import NORM_TYPES, Norm
from .batch import BatchNorm2d, GhostBatchNorm2d
from .channel import GroupNorm, InstanceNorm2d, LayerNorm, LayerNorm2d
from .evonorm import EvoNormB0, EvoNormS0
from .frn import FilterResponseNorm2d
from .frozen import FrozenBatchNorm2d
from .graph import UntraceableError
from .identity import NoNorm2d
from .placement import PlacementReport, place_norms
from .precise import precise_statistics
from .registry import NORMS, build_norm
from .renorm import BatchRenorm2d
from .residual import initialize_residual, residual_branches
from .statistics import freeze_statistics, merge_running_statistics, running_statistics, tracking_norms
from .swap import SwapReport, swap_norms
from .sync import SyncBatchNorm2d
from .virtual import VirtualBatchNet, VirtualBatchNorm2d
from .weight import WSConv2d

__all__ = [
    "NORMS",
    "NORM_TYPES",
    "BatchNorm2d",
    "BatchRenorm2d",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm2d",
    "FrozenBatchNorm2d",
    "GhostBatchNorm2d",
    "GroupNorm",
    "InstanceNorm2d",
    "LayerNorm",
    "LayerNorm2d",
    "NoNorm2d",
    "Norm",
    "PlacementReport",
    "SwapReport",
    "SyncBatchNorm2d",
    "UntraceableError",
    "VirtualBatchNet",
    "VirtualBatchNorm2d",
    "WSConv2d",
    "build_norm",
    "freeze_statistics",
    "initialize_residual",
    "merge_running_statistics",
    "place_norms",
    "precise_statistics",
    "residual_branches",
    "running_statistics",
    "swap_norms",
    "tracking_norms",
]
