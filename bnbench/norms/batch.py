"""Batch normalization on one device: per-device and ghost.

y = gamma * (x - mean) / sqrt(var + eps) + beta, with the mean and biased variance over the images of
one normalization batch and their pixels; running variance unbiased. Ioffe & Szegedy 2015; ghosts:
Hoffer, Hubara & Soudry 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .base import Norm, like_input, one_image_densely

POLICIES = ("mean", "rank0", "sequential")


class TrackingBatchNorm2d(Norm, nn.BatchNorm2d):
    """Base of the batch norms: always with momentum, affine part and running statistics, which can be frozen.

    In eval mode, or with `frozen` set (see `freeze_statistics`), the running statistics normalize. Activation
    checkpointing runs a forward twice, and so moves them twice. torch's `convert_sync_batchnorm` rebuilds every
    BatchNorm2d as a bare SyncBatchNorm, these too: swap instead.
    """

    momentum: float  # type: ignore[assignment]
    running_mean: Tensor  # type: ignore[assignment]
    running_var: Tensor  # type: ignore[assignment]
    num_batches_tracked: Tensor  # type: ignore[assignment]

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.frozen = False

    @property
    def uses_running(self) -> bool:
        return self.frozen or not self.training

    def by_running(self, x: Tensor) -> Tensor:
        """Normalize by the running statistics; they are constants to the gradient."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _check_input_dim(self, input: Tensor) -> None:
        self.check_input(input)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", frozen" if self.frozen else "")


class BatchNorm2d(TrackingBatchNorm2d):
    """BN over a device's batch: torch.nn.BatchNorm2d, with errors that say where it is.

    Input and output (N, C, H, W). Raises ValueError for one value a channel in training.
    """

    @one_image_densely
    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.uses_running:
            return self.by_running(input)
        self.check_values(input.numel() // self.num_features, "in the batch")
        return super().forward(input)


class GhostBatchNorm2d(TrackingBatchNorm2d):
    """BN over `ghosts` groups of a device's batch; image i of the batch belongs to group i mod ghosts.

    Input and output (N, C, H, W), N divisible by `ghosts` in training; in eval mode any N, and plain BN.
    A contiguous input is viewed, not copied, as (N / ghosts, ghosts * C, H, W): one fused call for all
    groups, and the interleaved order in which `ghosts` ranks would have taken the images. On a GPU a
    large channels_last input takes `fused.ghost_norm` instead, without a copy; `kernel` says which one the last
    forward took.

    Running statistics (C,), by `statistics`: `mean`, the arithmetic mean of the groups' (linear, so the
    same as buffers per group averaged later); `rank0`, the first group's (what rank 0 of `ghosts` ranks
    under plain DDP would keep); `sequential`, one update a group, in order (Hoffer's code; momentum m
    becomes 1 - (1 - m)^ghosts).

    Raises ValueError where the groups do not come out even or have one value a channel.
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghosts: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        statistics: str = "mean",
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        check_span("ghost", ghosts, None)
        check_policy("ghost", statistics)
        self.ghosts = ghosts
        self.statistics = statistics

    @one_image_densely
    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.uses_running:
            return self.by_running(input)
        k, c = self.ghosts, self.num_features
        if k > 1 and input.shape[0] % k == 0 and self.by_triton(input):
            count = input.shape[0] // k * input.shape[2] * input.shape[3]
            self.check_values(count, f"and group ({k} groups in {len(input)} images)")
            output, mean, var = fused.ghost_norm(input, k, self.weight, self.bias, self.eps)
            self._track(mean, var * (count / (count - 1)))
            return output
        view = as_ghosts(input, k, self)
        if k == 1:
            # Not the view of it: torch's CPU kernel differentiates a viewed channels_last image wrongly.
            return super().forward(input)
        # Momentum 1 leaves the groups' own statistics here: unbiased variance, as the running one wants it.
        mean, var = input.new_zeros(2, k * c, dtype=self.running_mean.dtype)
        output = F.batch_norm(
            view, mean, var, self.weight.repeat(k), self.bias.repeat(k), training=True, momentum=1.0,
            eps=self.eps,
        )  # fmt: skip
        if input.numel():  # without images there is nothing to learn, as in torch's BN
            self._track(mean.view(k, c), var.view(k, c))
        else:
            self.num_batches_tracked.add_(1)
        return like_input(output.view(input.shape), input)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics by the groups' mean and unbiased variance (ghosts, C)."""
        track(self.running_mean, mean, self.momentum, self.statistics)
        track(self.running_var, var, self.momentum, self.statistics)
        self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghosts={self.ghosts}, statistics={self.statistics}"


def as_ghosts(x: Tensor, ghosts: int, layer: Norm) -> Tensor:
    """(N, C, H, W) viewed as (N / ghosts, ghosts * C, H, W); ValueError where that leaves nothing to average."""
    n, c, h, w = x.shape
    if n % ghosts:
        raise ValueError(f"{layer.where}: a batch of {n} does not split into {ghosts} even groups")
    layer.check_values(n // ghosts * h * w, f"and group ({ghosts} groups in {n} images)")
    return x.reshape(n // ghosts, ghosts * c, h, w)


def check_policy(kind: str, statistics: str) -> None:
    if statistics not in POLICIES:
        raise ValueError(f"{kind}: statistics={statistics!r} is unknown; known: {', '.join(POLICIES)}")


def check_span(kind: str, ghosts: int, process_group: object) -> None:
    """Raise ValueError unless statistics go over ghosts (at least 1), or over a group of ranks, not both."""
    if ghosts < 1:
        raise ValueError(f"{kind}: ghosts={ghosts} must be at least 1")
    if ghosts > 1 and process_group is not None:
        raise ValueError(f"{kind}: ghosts={ghosts} and process_group exclude each other; choose one span")


def track(running: Tensor, groups: Tensor, momentum: float, policy: str = "mean") -> None:
    """Move `running` (C,) towards the statistics of `groups` (k, C), in place."""
    if policy == "sequential":
        for group in groups:
            running.lerp_(group.to(running.dtype), momentum)
    else:
        new = groups[0] if policy == "rank0" else groups.mean(0)
        running.lerp_(new.to(running.dtype), momentum)
