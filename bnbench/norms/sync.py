"""Batch normalization whose statistics span ranks: any process group, CPU and GPU, uneven batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .batch import TrackingBatchNorm2d


class SyncBatchNorm2d(TrackingBatchNorm2d):
    """BN over the images of all ranks in a process group, as if their batches were one.

    Input and output (N, C, H, W); N may differ by rank, and may be 0. In eval mode, without a process
    group or in a group of one, plain BN. Unlike `torch.nn.SyncBatchNorm` it runs on CPU tensors; on CUDA
    it calls torch's fused kernels, whose formula is the same.

    Forward: one all_gather of [mean, var, images, pixels], merged by Chan, Golub & LeVeque's formula in
    the statistics' own dtype (fp32 for half inputs): sums of squares would lose 8 digits at mean 1000.
    Backward: one all_reduce of [sum dy, sum dy * xhat]. The gradients of gamma and beta stay local, and
    DDP averages them. With uneven batches scale each rank's loss by ranks * n_rank / n.

    Not a subclass of torch's SyncBatchNorm, which DDP refuses on CPU.

    Raises ValueError if the whole group has one value a channel.
    """

    def __init__(
        self,
        num_features: int,
        process_group: Any = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or not dist.is_initialized() or dist.get_world_size(self.process_group) == 1:
            return super().forward(input)
        group = dist.group.WORLD if self.process_group is None else self.process_group
        self.num_batches_tracked.add_(1)
        if input.is_cuda:
            return _fused(self, input, group)
        with torch.no_grad():
            mean, var, count = _group_statistics(input, group)
            if count == 1:
                raise ValueError(
                    "SyncBatchNorm2d: one value per channel over all ranks has no variance; "
                    "use more images a step or larger inputs"
                )
            momentum = self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), momentum)
        return _Normalize.apply(input, self.weight, self.bias, mean, var, count, self.eps, group)

    def extra_repr(self) -> str:
        ranks = dist.get_world_size(self.process_group) if dist.is_initialized() else 1
        return f"{super().extra_repr()}, ranks={ranks}"

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm2d:
        # A process group is a handle on this process's sockets: shared by a copy, never copied.
        copy = SyncBatchNorm2d(self.num_features, self.process_group, self.eps, self.momentum)
        memo[id(self)] = copy
        copy.to(device=self.weight.device, dtype=self.weight.dtype)
        copy.load_state_dict(self.state_dict())
        for mine, theirs in zip(self.parameters(), copy.parameters(), strict=True):
            theirs.requires_grad_(mine.requires_grad)
        return copy.train(self.training)


def _group_statistics(x: Tensor, group: Any) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), biased variance (C,) and number of values per channel over every rank of the group."""
    n, c, h, w = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if n:
        # What BN itself computes on CPU: biased variance in two passes, 3x faster than var_mean.
        mean, var = torch.batch_norm_update_stats(x.to(dtype), None, None, 0.0)
    else:  # a rank without images still takes part in the collective
        mean = var = x.new_zeros(c, dtype=dtype)
    # Images and pixels apart: either is exact in fp32, while their product may pass 2^24.
    mine = torch.cat([mean, var, mean.new_tensor([n, h * w])])
    parts = mine.new_empty(dist.get_world_size(group) * mine.numel())
    dist.all_gather_into_tensor(parts, mine, group=group)
    means, variances, images, pixels = parts.view(-1, mine.numel()).split([c, c, 1, 1], dim=1)
    counts = images.double() * pixels.double()
    total = counts.sum()
    share = (counts / total).to(dtype)
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    return mean, var, total.item()


class _Normalize(torch.autograd.Function):
    """Normalize with the group's statistics, and differentiate through them."""

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
        if x.shape[0]:
            # As if the statistics were constants: dx = dy * gamma / std; sums of dy * xhat and of dy.
            dx, sum_dy_xhat, sum_dy = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            dx, sum_dy_xhat, sum_dy = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
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
