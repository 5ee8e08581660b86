"""Normalization layers for CNNs, in pure torch; importable without the rest of bnbench."""

from .batch import GhostBatchNorm2d
from .registry import NORMS, build_norm
from .statistics import merge_running_statistics
from .swap import SwapReport, swap_norms
from .sync import SyncBatchNorm2d

__all__ = [
    "NORMS",
    "GhostBatchNorm2d",
    "SwapReport",
    "SyncBatchNorm2d",
    "build_norm",
    "merge_running_statistics",
    "swap_norms",
]
