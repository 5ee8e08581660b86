"""Batch normalization on one device: per-device and ghost.

y = gamma * (x - mean) / sqrt(var + eps) + beta, with the mean and biased variance over the images of
one normalization batch and their pixels; running variance unbiased. Ioffe & Szegedy 2015; ghosts:
Hoffer, Hubara & Soudry 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TrackingBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that always has what torch's may lack: a momentum and running statistics."""

    momentum: float  # type: ignore[assignment]
    running_mean: Tensor  # type: ignore[assignment]
    running_var: Tensor  # type: ignore[assignment]
    num_batches_tracked: Tensor  # type: ignore[assignment]


class GhostBatchNorm2d(TrackingBatchNorm2d):
    """BN over `ghosts` groups of a device's batch; image i of the batch belongs to group i mod ghosts.

    Input and output (N, C, H, W), N divisible by `ghosts` in training; in eval mode any N, and plain BN.
    A contiguous input is viewed, not copied, as (N / ghosts, ghosts * C, H, W): one fused call for all
    groups, and the interleaved order in which `ghosts` ranks would have taken the images.

    Running statistics are the arithmetic mean of the groups' (`statistics="mean"`), or those of the first
    group (`"rank0"`: what rank 0 of `ghosts` ranks under plain DDP would keep). Unlike per-group buffers
    averaged later they stay (C,), with the same result: the update is linear.

    Raises ValueError where the groups do not come out even or have one value a channel.
    """

    def __init__(
        self,
        num_features: int,
        ghosts: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        statistics: str = "mean",
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghosts = ghosts
        self.statistics = statistics

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        n, c, h, w = input.shape
        k = self.ghosts
        if n % k:
            raise ValueError(f"GhostBatchNorm2d: a batch of {n} does not split into {k} even groups")
        if n // k * h * w == 1:
            raise ValueError(
                "GhostBatchNorm2d: one value per channel and group has no variance; "
                f"take fewer ghosts than {k} or a larger input than {tuple(input.shape)}"
            )
        mean, var = _repeat(self.running_mean, k), _repeat(self.running_var, k)
        output = F.batch_norm(
            input.reshape(n // k, k * c, h, w),
            mean,
            var,
            _repeat(self.weight, k),
            _repeat(self.bias, k),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
        with torch.no_grad():
            for running, groups in ((self.running_mean, mean), (self.running_var, var)):
                by_group = groups.view(k, c)
                running.copy_(by_group.mean(0) if self.statistics == "mean" else by_group[0])
            self.num_batches_tracked.add_(1)
        return output.view(n, c, h, w)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghosts={self.ghosts}, statistics={self.statistics}"


def _repeat(channels: Tensor, times: int) -> Tensor:
    """(C,) to (times * C,); unlike a view it is memory of its own, which batch_norm may write."""
    return channels.repeat(times)
