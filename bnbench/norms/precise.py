"""PreciseBN: running statistics of the network as it is, over many batches. Wu & Johnson 2021.

A running average lags behind the weights and weighs the last batches most. Here the weights stay as they are,
and the statistics are those of all values that reach a layer: pooled, not averaged over batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .statistics import KeptBuffers, tracking_norms
from .sync import batch_statistics


class UnmeasurableError(ValueError):
    """What a network or its data do not allow to measure, on every rank alike."""


Part = tuple[Tensor, Tensor, float]  # mean (C,), biased variance (C,), values a channel


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running mean and variance of every norm to those of its input over `batches`, on all ranks alike.

    A pass through a copy in training mode: every norm normalizes by batch statistics over its own span, as in
    training, dropout drops, and buffers are put back after each batch, so that the order of batches is of no
    effect. Nothing else of `model` changes, nor do the random numbers that follow. Means and variances are
    merged over batches and ranks by Chan's formula in fp64. The variance is the unbiased one, n / (n - 1) with
    the n of all batches, because that is what every norm here keeps (fvcore's PreciseBN keeps the biased one).
    Norms that are fixed or frozen keep their statistics: they are part of the function that they compute.

    `batches` of images (N, ...) may differ in number and size by rank, unless statistics span ranks. One
    collective; call it on every rank. Raises ValueError if there is no batch anywhere, UnmeasurableError if the
    input of a norm is not (N, C, ...) with the C of its running variance.
    """
    network = copy.deepcopy(model).train()
    norms = tracking_norms(network)
    if not norms:
        return
    found: dict[str, list[Part]] = {path: [] for path in norms}
    for path, norm in norms.items():
        norm.register_forward_pre_hook(partial(_note, path, found[path]), with_kwargs=True)
    kept, devices = KeptBuffers(network), {buffer.device for buffer in network.buffers()}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):  # dropout draws
        for images in batches:
            network(images)
            kept.restore()
    mine = {path: _merged(parts, _running_var(norms[path])) for path, parts in found.items()}
    merged, originals = _over_ranks(mine), dict(model.named_modules())
    if not any(count for _, _, count in merged.values()):
        raise ValueError("precise_statistics: no batch has reached any norm: give one at least")
    for path, (mean, var, count) in merged.items():
        if not count:  # a layer that the forward pass leaves out has nothing to learn
            continue
        running_mean = getattr(originals[path], "running_mean", None)
        if running_mean is not None:
            running_mean.copy_(mean)
        _running_var(originals[path]).copy_(var * (count / max(count - 1, 1)))


def _running_var(norm: nn.Module) -> Tensor:
    assert isinstance(norm.running_var, Tensor)
    return norm.running_var


def _note(path: str, parts: list[Part], norm: nn.Module, args: Any, kwargs: Any) -> None:
    x = next(iter((*args, *kwargs.values())))
    channels = _running_var(norm).numel()
    if x.dim() < 2 or x.shape[1] != channels:
        raise UnmeasurableError(
            f"precise_statistics: {type(norm).__name__} at {path} has running statistics of {channels} channels "
            f"and an input of {tuple(x.shape)}, which is not (N, {channels}, ...)"
        )
    parts.append(batch_statistics(x.reshape(*x.shape[:2], -1, 1)))


def _merged(parts: list[Part], like: Tensor) -> Part:
    """Of several parts' values together, in fp64; zeros, and none of them, if there are no parts."""
    if not parts:
        nothing = torch.zeros_like(like, dtype=torch.float64)
        return nothing, nothing, 0.0
    means = torch.stack([mean for mean, _, _ in parts]).double()
    variances = torch.stack([var for _, var, _ in parts]).double()
    counts = means.new_tensor([count for _, _, count in parts])
    share = (counts / counts.sum().clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), counts.sum().item()


def _over_ranks(mine: dict[str, Part]) -> dict[str, Part]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    flat = torch.cat([torch.cat([mean, var, mean.new_tensor([count])]) for mean, var, count in mine.values()])
    gathered = flat.new_empty(dist.get_world_size() * flat.numel())
    dist.all_gather_into_tensor(gathered, flat)
    sizes = [size for mean, _, _ in mine.values() for size in (mean.numel(), mean.numel(), 1)]
    ranks = [rank.split(sizes) for rank in gathered.view(-1, flat.numel())]
    return {
        path: _merged([(r[3 * i], r[3 * i + 1], r[3 * i + 2].item()) for r in ranks], mine[path][0])
        for i, path in enumerate(mine)
    }
