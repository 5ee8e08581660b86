"""Batch Renormalization: batch statistics corrected towards the running ones. Ioffe 2017."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import like_input, one_image_densely
from .batch import TrackingBatchNorm2d, as_ghosts, check_span, track
from .sync import SpansRanks, batch_statistics, normalize


class BatchRenorm2d(SpansRanks, TrackingBatchNorm2d):
    """y = gamma * ((x - mean_B) / std_B * r + d) + beta, over any span: ghosts, a device, a group of ranks.

    r = clip(std_B / std, 1 / r_max, r_max) and d = clip((mean_B - mean) / std, -d_max, d_max), constants to
    the gradient, from the running statistics as they were before this step. So gamma * r and gamma * d + beta
    are BN's own affine part, and the layer costs what BN costs. std = sqrt(var + eps); unlike the paper,
    which averages the biased std, the running statistic is the unbiased variance, as in our other batch
    norms. Eval mode is BN's.

    The bounds begin at (1, 0), where the layer is BN, and stay there for `warmup` steps; from then they grow
    linearly, to r_max at step `r_end` and to d_max at `d_end` (paper: 5,000, 40,000 and 25,000 steps, 3 and
    5). With `total_steps` the three are fractions of it. `num_batches_tracked` counts the steps, so a
    resumed layer goes on where it was. `momentum` is the weight of the new batch (paper: 0.01).

    Input and output (N, C, H, W). Without a process group no batch statistics cross ranks. On several ranks
    merge the running statistics before every step (`merge_running_statistics`): r and d read them. Once
    differentiable; the bounds are fp32. Raises ValueError for one value a channel, a schedule that ends before
    it begins, a process group that is none.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.01,
        ghosts: int = 1,
        process_group: Any = None,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: float = 5000,
        r_end: float = 40000,
        d_end: float = 25000,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        check_span("brn", ghosts, process_group)
        if r_max < 1 or d_max < 0:
            raise ValueError(f"brn: r_max={r_max} must be at least 1 and d_max={d_max} at least 0")
        if not 0 <= warmup <= min(r_end, d_end):
            raise ValueError(
                f"brn: warmup={warmup}, r_end={r_end}, d_end={d_end}: the bounds grow from warmup on, so both "
                "ends must be at least warmup, and warmup at least 0"
            )
        if total_steps is not None and max(r_end, d_end) > 1:
            raise ValueError(
                f"brn: r_end={r_end} and d_end={d_end} must be fractions, at most 1, where total_steps is given"
            )
        self.ghosts, self.process_group = ghosts, process_group
        self.r_max, self.d_max = r_max, d_max
        scale = 1 if total_steps is None else total_steps
        self.warmup, self.r_end, self.d_end = warmup * scale, r_end * scale, d_end * scale

    def bounds(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max of the coming step, () each; tensors, so that nothing waits for the device."""
        past = self.num_batches_tracked - self.warmup
        r, d = (
            (past / (end - self.warmup)).clamp(0, 1) if end - self.warmup > 1e-6 else (past >= 0).float()
            for end in (self.r_end, self.d_end)
        )
        return 1 + r * (self.r_max - 1), d * self.d_max

    @one_image_densely
    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.uses_running:
            return self.by_running(input)
        k, c = self.ghosts, self.num_features
        view = as_ghosts(input, k, self) if k > 1 else input
        group = self.group if self.spans else None
        with torch.no_grad():
            mean, var, count = batch_statistics(view, group)
            self.check_values(count, "in a normalization batch")
            find = _opaque_correction if torch.compiler.is_compiling() else correction
            r, d = find(
                mean.view(k, c), var.view(k, c), self.running_mean, self.running_var, *self.bounds(), self.eps
            )
            if count:  # a batch without images leaves the statistics as they are, as in torch's BN
                track(self.running_mean, mean.view(k, c), self.momentum)
                track(self.running_var, var.view(k, c) * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        weight, bias = (self.weight * r).view(-1), (self.weight * d + self.bias).view(-1)
        output = normalize(view, weight, bias, mean, var, count, self.eps, group)
        return output if k == 1 else like_input(output.view(input.shape), input)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, ghosts={self.ghosts}, r_max={self.r_max}, d_max={self.d_max}, "
            f"warmup={self.warmup:g}, r_end={self.r_end:g}, d_end={self.d_end:g}"
        )


def correction(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    r_max: Tensor,
    d_max: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """r and d (k, C) of k groups' mean and biased variance (k, C), by the running (C,) and the bounds ()."""
    running_std = (running_var + eps).sqrt()
    r = (var + eps).sqrt() / running_std
    d = (mean - running_mean) / running_std
    return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)


# torch.compile works r and d out again in the backward pass, from running statistics that this step has moved
# by then: a gradient of gamma that is silently wrong (pytorch #197039). It does not look into an operator.
_opaque_correction = torch.library.custom_op(
    "bnbench::renorm_correction",
    correction,
    mutates_args=(),
    schema=(
        "(Tensor mean, Tensor var, Tensor running_mean, Tensor running_var, Tensor r_max, Tensor d_max, float eps)"
        " -> (Tensor, Tensor)"
    ),
)


@_opaque_correction.register_fake
def _(mean: Tensor, var: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(var)
