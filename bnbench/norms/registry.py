"""The one door: a norm's name to its builder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .batch import GhostBatchNorm2d
from .channel import group_norm
from .sync import SyncBatchNorm2d


def batch_norm(
    num_features: int,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    ghosts: int = 1,
    process_group: Any = None,
    statistics: str = "mean",
) -> nn.BatchNorm2d:
    """Batch normalization at any span: a device (default), `ghosts` groups inside it, or a group of ranks.

    A given `process_group` spans its ranks (`torch.distributed.group.WORLD` for all of them).
    Raises ValueError if both are asked for: nothing shares statistics with a part of another rank's batch.
    """
    if ghosts > 1 and process_group is not None:
        raise ValueError(f"bn: ghosts={ghosts} and process_group exclude each other; choose one span")
    if ghosts > 1:
        return GhostBatchNorm2d(num_features, ghosts, eps, momentum, statistics)
    if process_group is not None:
        return SyncBatchNorm2d(num_features, process_group, eps, momentum)
    return nn.BatchNorm2d(num_features, eps=eps, momentum=momentum)


def sync_batch_norm(
    num_features: int, *, eps: float = 1e-5, momentum: float = 0.1, process_group: Any = None
) -> SyncBatchNorm2d:
    """Batch normalization over every rank of `process_group`; None = the world at the time of the call."""
    return SyncBatchNorm2d(num_features, process_group, eps, momentum)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": batch_norm,
    "syncbn": sync_batch_norm,
    "gn": group_norm,
}


def build_norm(kind: str, num_features: int, **options: Any) -> nn.Module:
    """The layer for `num_features` channels. ValueError for an unknown kind or option, naming the known."""
    if kind not in NORMS:
        raise ValueError(f"unknown norm {kind!r}; known: {', '.join(NORMS)}")
    builder = NORMS[kind]
    known = [name for name in inspect.signature(builder).parameters if name != "num_features"]
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name!r} of norm {kind!r}; known: {', '.join(known)}")
    return builder(num_features, **options)
