"""EvoNorm: normalization and activation found together. Liu, Brock, Simonyan & Le 2020.

Each layer is one autograd function that keeps x and statistics, and works the rest out again: written out
for autograd they keep 8 tensors of the input's size and take 7 to 13 times BN's time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .base import Norm, like_input
from .batch import as_ghosts, check_policy, check_span, track
from .blocks import blocks, image_statistics, joined, over_pixels, sum_pixels, wide
from .channel import check_groups
from .sync import SpansRanks, merge_statistics


class EvoNormS0(Norm):
    """y = gamma * x * sigmoid(v * x) / std + beta; std = sqrt(var + eps) over the C / num_groups channels of a
    group in one image, and H, W (biased).

    Input and output (N, C, H, W); gamma, beta, v (C,), v from 1. The sigmoid is the activation: no ReLU
    belongs behind it. With `act=False` y = gamma * x / std + beta, without v; timm's `apply_act=False` does not
    divide at all, its S0a does as here. Once differentiable.
    Raises ValueError if `num_groups` does not divide `num_features`, or if a group has one value.
    """

    includes_activation = True

    def __init__(
        self, num_features: int, *, num_groups: int = 32, eps: float = 1e-5, act: bool = True
    ) -> None:
        super().__init__()
        check_groups("evonorm_s0", num_groups, num_features)
        self.num_features, self.num_groups, self.eps, self.act = num_features, num_groups, eps, act
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.v = nn.Parameter(torch.ones(num_features)) if act else None

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        values = self.num_features // self.num_groups * input.shape[2] * input.shape[3]
        self.check_values(values, "group of an image")
        y = _EvoNormS0.apply(input, self.weight, self.bias, self.v, self.num_groups, self.eps)
        return like_input(y, input)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, act={self.act}"


class EvoNormB0(SpansRanks):
    """y = gamma * x / max(std_B, v * x + std_i) + beta; std_B = sqrt(var + eps) over a normalization batch (any
    span: ghosts, a device, a group of ranks), std_i over the H, W of one image and channel (both biased).

    Input and output (N, C, H, W); gamma, beta, v (C,), v from 1. The maximum is the activation: no ReLU belongs
    behind it. With `act=False` y = gamma * x / std_B + beta. In eval mode std_B comes from the running
    variance, which is unbiased, as in our other batch norms and in timm; the TPU code's is biased,
    and timm's eps 1e-3.
    With a process group: one all_gather forward, one all_reduce of C backward; without, nothing crosses ranks.
    Once differentiable. Raises ValueError in training for one value a channel, and for a process group that
    does not exist (any more) or that this rank is not in.
    """

    includes_activation = True
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        ghosts: int = 1,
        process_group: Any = None,
        statistics: str = "mean",
        act: bool = True,
    ) -> None:
        super().__init__()
        check_span("evonorm_b0", ghosts, process_group)
        check_policy("evonorm_b0", statistics)
        self.num_features, self.eps, self.momentum, self.act = num_features, eps, momentum, act
        self.ghosts, self.process_group, self.statistics = ghosts, process_group, statistics
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.v = nn.Parameter(torch.ones(num_features)) if act else None
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        k = self.ghosts if self.training else 1
        x = as_ghosts(input, k, self) if k > 1 else input
        weight, bias = self.weight.repeat(k), self.bias.repeat(k)
        v = None if self.v is None else self.v.repeat(k)
        image_mean, image_var = image_statistics(x)
        if self.training:
            mean, var, count = self._batch_statistics(x, image_mean, image_var)
            group = self.group if self.spans else None
        else:
            # Constants to the gradient: an infinite batch.
            mean, var, count, group = torch.zeros_like(self.running_var), self.running_var, float("inf"), None
        y = _EvoNormB0.apply(x, weight, bias, v, image_mean, image_var, mean, var, count, self.eps, group)
        return like_input(y.view(input.shape), input)

    def _batch_statistics(
        self, x: Tensor, image_mean: Tensor, image_var: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Those of the span, from those of its images; the running variance follows."""
        n, _, h, w = x.shape
        with torch.no_grad():
            if n:
                mean, var = image_mean.mean(0), image_var.mean(0) + image_mean.var(0, correction=0)
            else:  # a rank without images still takes part in the collective
                mean = var = image_mean.new_zeros(x.shape[1])
            count = float(n * h * w)
            if self.spans:
                mean, var, count = merge_statistics(mean, var, n, h * w, self.group)
            self.check_values(count, "in a normalization batch")
            if count:
                unbiased = var * (count / (count - 1))
                track(self.running_var, unbiased.view(-1, self.num_features), self.momentum, self.statistics)
            self.num_batches_tracked.add_(1)
        return mean, var, count

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, ghosts={self.ghosts}, "
            f"act={self.act}"
        )


class _EvoNormS0(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, v: Tensor | None, groups: int, eps: float
    ) -> Tensor:
        x = input.contiguous()
        y = torch.empty_like(x)
        _, c, h, w = x.shape
        means, rstds = [], []
        for part in blocks(x):
            block = wide(x[part])
            _, mean, rstd = torch.native_group_norm(block, None, None, block.shape[0], c, h * w, groups, eps)
            means.append(mean)
            rstds.append(rstd)
            scale = weight * rstd.repeat_interleave(c // groups, 1)
            top = block if v is None else block.mul(over_pixels(v)).sigmoid_().mul_(block)
            y[part] = top.mul(over_pixels(scale)).add_(over_pixels(bias))
        ctx.save_for_backward(x, weight, v, joined(means, x), joined(rstds, x))
        ctx.groups = groups
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, v, means, rstds = ctx.saved_tensors
        n, c, h, w = x.shape
        groups, each = ctx.groups, c // ctx.groups
        dy, dx = grad.contiguous(), torch.empty_like(x)
        rstds = rstds.repeat_interleave(each, 1)
        d_weight, d_bias, d_v = (rstds.new_zeros(n, c) for _ in range(3))
        for part in blocks(x):
            block, dyb, rstd = wide(x[part]), wide(dy[part]), rstds[part]
            scale = weight * rstd
            d_bias[part] = sum_pixels(dyb)
            if v is None:
                top_dy = sum_pixels(dyb * block)
                d_top = dyb.clone()
            else:
                s = block.mul(over_pixels(v)).sigmoid_()
                slope = torch.ops.aten.sigmoid_backward(dyb, s).mul_(block)  # dy x s (1 - s)
                d_top = s.mul_(dyb)
                top_dy = sum_pixels(d_top * block)  # of dy and the numerator x s
                d_v[part] = sum_pixels(slope * block) * scale
                d_top.addcmul_(slope, over_pixels(v))
            d_weight[part] = top_dy * rstd
            # Through the group's std: d rstd / dx = -rstd^3 (x - mean) / values.
            inner = (top_dy * scale).view(-1, groups, each).sum(2).repeat_interleave(each, 1)
            inner = inner * rstd.square() / -(each * h * w)
            mean = means[part].repeat_interleave(each, 1)
            d_top.mul_(over_pixels(scale)).addcmul_(block, over_pixels(inner))
            dx[part] = d_top.sub_(over_pixels(inner * mean))
        return dx, d_weight.sum(0), d_bias.sum(0), None if v is None else d_v.sum(0), None, None


class _EvoNormB0(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        v: Tensor | None,
        image_mean: Tensor,
        image_var: Tensor,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
        group: Any,
    ) -> Tensor:
        x = input.contiguous()
        y = torch.empty_like(x)
        batch_std, image_std = (var + eps).sqrt(), (image_var + eps).sqrt()
        for part in blocks(x):
            block = wide(x[part])
            if v is None:
                top = block.mul(over_pixels(weight / batch_std))
            else:
                low = block.mul(over_pixels(v)).add_(over_pixels(image_std[part]))
                torch.maximum(low, over_pixels(batch_std), out=low)
                top = torch.div(block, low, out=low).mul_(over_pixels(weight))
            y[part] = top.add_(over_pixels(bias))
        ctx.save_for_backward(x, weight, v, image_mean, image_std, mean, batch_std)
        ctx.count, ctx.group = count, group
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, v, image_mean, image_std, mean, batch_std = ctx.saved_tensors
        dy, dx = grad.contiguous(), torch.empty_like(x)
        pixels = x.shape[2] * x.shape[3]
        d_weight, d_bias, d_v, d_image_std, d_batch_std = (torch.zeros_like(image_std) for _ in range(5))
        for part in blocks(x):
            block, dyb = wide(x[part]), wide(dy[part])
            d_bias[part] = sum_pixels(dyb)
            if v is None:
                d_weight[part] = sum_pixels(dyb * block) / batch_std
                d_batch_std[part] = -d_weight[part] * weight / batch_std
                dx[part] = dyb * over_pixels(weight / batch_std)
                continue
            low = block.mul(over_pixels(v)).add_(over_pixels(image_std[part]))
            above = low - over_pixels(batch_std)  # positive where the image's own side is the larger
            std = torch.maximum(low, over_pixels(batch_std), out=low)
            ratio = block / std
            d_weight[part] = sum_pixels(dyb * ratio)
            d_block = torch.div(dyb, std, out=std).mul_(over_pixels(weight))
            d_std = ratio.mul_(d_block).neg_()
            d_low = torch.ops.aten.threshold_backward(d_std, above, 0)
            d_image_std[part] = sum_pixels(d_low)
            d_batch_std[part] = sum_pixels(d_std) - d_image_std[part]
            d_v[part] = sum_pixels(d_low * block)
            dx[part] = d_block.addcmul_(d_low, over_pixels(v))
        batch = d_batch_std.sum(0)
        if ctx.group is not None:
            dist.all_reduce(batch, group=ctx.group)
        # d std / dx = (x - mean) / (values * std), of the image and of the batch.
        of_image = d_image_std / (pixels * image_std)
        of_batch = batch / (ctx.count * batch_std)
        slope, shift = of_image + of_batch, -(of_image * image_mean + of_batch * mean)
        for part in blocks(x):
            inner = torch.addcmul(over_pixels(shift[part]), wide(x[part]), over_pixels(slope[part]))
            dx[part] += inner
        return dx, d_weight.sum(0), d_bias.sum(0), None if v is None else d_v.sum(0), *[None] * 7
