"""Running statistics: which norms keep them, and one stated policy for those of several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .base import TORCHVISION_NORMS
from .batch import TrackingBatchNorm2d
from .frozen import FrozenBatchNorm2d

# Neither the statistics of batches: fixed from the start, or those of single images.
NOT_OF_BATCHES: tuple[type[nn.Module], ...] = (
    FrozenBatchNorm2d,
    nn.modules.instancenorm._InstanceNorm,
    *TORCHVISION_NORMS,
)


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Every running mean and variance of the model, by its path: what a norm of whatever type keeps."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }


def tracking_norms(model: nn.Module, frozen: bool = False) -> dict[str, nn.Module]:
    """The norms whose running statistics follow those of batches, by path; with `frozen` those that did, too.

    By what they keep, so that a user's own count. Not instance normalization, whose running variance is that of
    single images, nor norms that were fixed from the start.
    """
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, NOT_OF_BATCHES)
        and (frozen or not getattr(module, "frozen", False))
    }


def freeze_statistics(model: nn.Module) -> list[str]:
    """From now on the batch norms of `model` normalize by their running statistics, in training too.

    Those are the layers of `bn`, `syncbn`, `ghost`, `brn`, `frozen` and `ws_bn`. Returns the paths of others whose
    running statistics go on: torch's own (swap first), EvoNorm-B0, a user's. The affine part trains on: freezing it
    in mid-run would leave DDP waiting for its gradients. Merge the ranks' statistics first
    (`merge_running_statistics`). Kept by a swap, not in a state_dict: call it again on resuming.
    """
    for module in model.modules():
        if isinstance(module, TrackingBatchNorm2d):
            module.frozen = True
    return list(tracking_norms(model))


class KeptBuffers:
    """A model's buffers as they are now, to be put back after a forward pass that moves them."""

    def __init__(self, model: nn.Module) -> None:
        self._pairs = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, kept in self._pairs:
            buffer.copy_(kept)


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
