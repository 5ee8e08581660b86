"""Batch normalization whose statistics span ranks: any process group, CPU and GPU, uneven batches."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .base import Norm, one_image_densely
from .batch import TrackingBatchNorm2d


class SpansRanks(Norm):
    """A layer with a `process_group`: a handle on this process's sockets, shared by a copy, never copied."""

    process_group: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SpansRanks:
        memo[id(self.process_group)] = self.process_group
        memo[id(self)] = new = type(self).__new__(type(self))
        new.__dict__.update({key: deepcopy(value, memo) for key, value in self.__dict__.items()})
        return new

    @property
    def spans(self) -> bool:
        """Whether statistics cross ranks: a process group was given, and it has more than this rank.

        Raises ValueError for a group that is not there, or not this rank's: its size says nothing then.
        """
        if self.process_group is None:
            return False
        try:
            rank = dist.get_rank(self.process_group)
        except (ValueError, RuntimeError, TypeError):
            # No world, another world's group, a destroyed one, or no group at all.
            raise ValueError(
                f"{self.where}: process_group={self.process_group!r} is no process group of an initialized "
                "torch.distributed: initialize it before building the layer, and build the layer anew after "
                "destroying a group"
            ) from None
        if rank < 0:
            raise ValueError(
                f"{self.where}: rank {dist.get_rank()} is not in the layer's process group: call new_group for "
                "every group on every rank, and keep the one whose ranks include this one"
            )
        return dist.get_world_size(self.process_group) > 1

    @property
    def group(self) -> Any:
        return self.process_group


class SyncBatchNorm2d(SpansRanks, TrackingBatchNorm2d):
    """BN over the images of all ranks in a process group, as if their batches were one.

    Input and output (N, C, H, W); N may differ by rank, and may be 0. In eval mode, without a process
    group or in a group of one, plain BN. Unlike `torch.nn.SyncBatchNorm` it runs on CPU tensors; on CUDA
    it calls torch's fused kernels, whose formula is the same.

    Forward: one all_gather of [mean, var, images, pixels], merged by Chan, Golub & LeVeque's formula in
    the statistics' own dtype (fp32 for half inputs): sums of squares would lose 8 digits at mean 1000.
    Backward: one all_reduce of [sum dy, sum dy * xhat]. The gradients of gamma and beta stay local, and
    DDP averages them. With uneven batches scale each rank's loss by ranks * n_rank / n.

    Not a subclass of torch's SyncBatchNorm, which DDP refuses on CPU. torch.compile breaks the graph at the
    gathering: the host reads how many values there are.

    Raises ValueError in training if the whole group has one value a channel (on CPU: the fused kernels do not
    count), and for a process group that does not exist (any more) or that this rank is not in.
    """

    def __init__(
        self, num_features: int, *, process_group: Any = None, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.process_group = process_group

    @one_image_densely
    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.uses_running:
            return self.by_running(input)
        if not self.spans:
            self.check_values(input.numel() // self.num_features, "in the batch")
            return super().forward(input)
        self.num_batches_tracked.add_(1)
        if input.is_cuda:
            return _fused(self, input, self.group)
        with torch.no_grad():
            mean, var, count = batch_statistics(input, self.group)
            self.check_values(count, "over all ranks")
            if count:  # without images anywhere there is nothing to learn, as in torch's BN
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(
                    (var * (count / (count - 1))).to(self.running_var.dtype), self.momentum
                )
        return normalize(input, self.weight, self.bias, mean, var, count, self.eps, self.group)

    @property
    def spans(self) -> bool:
        """As for any layer with a process group; None is the whole world, if there is one."""
        if self.process_group is None:
            return dist.is_initialized() and dist.get_world_size() > 1
        return super().spans

    @property
    def group(self) -> Any:
        return dist.group.WORLD if self.process_group is None else self.process_group

    def extra_repr(self) -> str:
        known = self.process_group is None or isinstance(self.process_group, dist.ProcessGroup)
        ranks = dist.get_world_size(self.process_group) if known and dist.is_initialized() else 1
        return f"{super().extra_repr()}, ranks={ranks}"


def batch_statistics(x: Tensor, group: Any = None) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), biased variance (C,) and number of values a channel; over every rank of a given group.

    In fp32 for half inputs. No gradient flows: `normalize` differentiates through them.
    """
    n, c, h, w = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if n:
        # What BN itself computes on CPU: biased variance in two passes, 3x faster than var_mean.
        mean, var = torch.batch_norm_update_stats(x.detach().to(dtype), None, None, 0.0)
    else:  # a rank without images still takes part in the collective
        mean = var = x.new_zeros(c, dtype=dtype)
    if group is None:
        return mean, var, float(n * h * w)
    return merge_statistics(mean, var, n, h * w, group)


def merge_statistics(
    mean: Tensor, var: Tensor, images: int, pixels: int, group: Any
) -> tuple[Tensor, Tensor, float]:
    """This rank's mean and biased variance (C,) to those of the group, and the group's values a channel."""
    c = mean.numel()
    # Images and pixels apart: either is exact in fp32, while their product may pass 2^24.
    mine = torch.cat([mean, var, mean.new_tensor([images, pixels])])
    parts = mine.new_empty(dist.get_world_size(group) * mine.numel())
    dist.all_gather_into_tensor(parts, mine, group=group)
    means, variances, all_images, all_pixels = parts.view(-1, mine.numel()).split([c, c, 1, 1], dim=1)
    counts = all_images.double() * all_pixels.double()
    total = counts.sum()
    share = (counts / total.clamp(min=1)).to(mean.dtype)  # no images on any rank: zeros, not NaN
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    return mean, var, total.item()


def normalize(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: float, eps: float, group: Any
) -> Tensor:
    """weight * (x - mean) / sqrt(var + eps) + bias, differentiated through `batch_statistics(x, group)`.

    x (N, C, H, W); the others (C,). With a group, the backward pass makes one all_reduce of 2C.
    """
    return _Normalize.apply(x, weight.to(mean.dtype), bias.to(mean.dtype), mean, var, count, eps, group)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
        group: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        alone = ctx.group is None
        if x.shape[0]:
            # Alone, all of it. In a group, as if the statistics were constants: dx = dy * gamma / std.
            dx, sum_dy_xhat, sum_dy = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, mean, torch.rsqrt(var + ctx.eps), alone, ctx.eps, [True, True, True]
            )
        else:
            dx, sum_dy_xhat, sum_dy = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if alone:
            return dx, sum_dy_xhat, sum_dy, None, None, None, None, None
        sums = torch.cat([sum_dy, sum_dy_xhat]).to(mean.dtype)
        dist.all_reduce(sums, group=ctx.group)
        mean_dy, mean_dy_xhat = sums.div_(ctx.count).chunk(2)
        # What the statistics add: -gamma / std * (mean(dy) + xhat * mean(dy * xhat)), itself an affine
        # map of xhat and so one more fused pass.
        scale = weight * torch.rsqrt(var + ctx.eps)
        if x.shape[0]:
            through = F.batch_norm(
                x, mean, var, scale * mean_dy_xhat, scale * mean_dy, training=False, eps=ctx.eps
            )
            dx = dx.sub_(through)
        return dx, sum_dy_xhat, sum_dy, None, None, None, None, None


def _fused(module: SyncBatchNorm2d, x: Tensor, group: Any) -> Tensor:
    """torch's own CUDA kernels, reached below the module that would reject our class's CPU life."""
    from torch.nn.modules._functions import SyncBatchNorm as Fused

    return Fused.apply(
        x,
        module.weight,
        module.bias,
        module.running_mean,
        module.running_var,
        module.eps,
        module.momentum,
        group,
        dist.get_world_size(group),
    )
