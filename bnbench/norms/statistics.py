"""Running statistics across ranks: one stated policy instead of whatever rank 0 happened to see."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Every running mean and variance of the model, by its path: what a norm of whatever type keeps."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }


def merge_running_statistics(model: nn.Module, policy: str) -> None:
    """Give every rank the same running mean and variance, in place, by one collective.

    `mean`: the arithmetic mean of the running mean and of the unbiased running variance over ranks.
    There is no between-group term, so that the map is linear: merging now, later, or at every step gives
    the same, and every route to one NBS agrees. `rank0`: those of rank 0, as plain DDP's
    broadcast_buffers would have left them. Call it on every rank, before evaluation and checkpoints.
    """
    if policy not in ("mean", "rank0"):
        raise ValueError(f"merge_running_statistics: policy={policy!r} is unknown; known: mean, rank0")
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    running = list(running_statistics(model).values())
    if not running:
        return
    flat = torch.cat(running)
    if policy == "mean":
        dist.all_reduce(flat)  # gloo has no average
        flat /= dist.get_world_size()
    else:
        dist.broadcast(flat, src=0)
    for buffer, merged in zip(running, flat.split([b.numel() for b in running]), strict=True):
        buffer.copy_(merged)
