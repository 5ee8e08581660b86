"""The norms as one writes them down from the papers, differentiated by autograd: what care is worth.

Same formulas, parameters and updates as ours in training mode, without fused calls or recomputation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Affine(nn.Module):
    """gamma, beta and, where the kind has one, its own parameter; buffers as BatchNorm2d's."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float, extra: float | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_features, 1, 1))
        if extra is not None:
            self.extra = nn.Parameter(torch.full((num_features, 1, 1), extra))
        self.register_buffer("running_mean", torch.zeros(num_features, 1, 1))
        self.register_buffer("running_var", torch.ones(num_features, 1, 1))


class ChunkLoopGhost(nn.BatchNorm2d):
    """Ghost BN as most write it: one call of BN a chunk, and their outputs put together again."""

    def __init__(self, num_features: int, ghosts: int) -> None:
        super().__init__(num_features)
        self.ghosts = ghosts

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super(ChunkLoopGhost, self).forward(part) for part in input.chunk(self.ghosts)])


class Renorm(_Affine):
    """Batch renormalization with its bounds open at (r_max, d_max) = (3, 5)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        var = x.var((0, 2, 3), correction=0, keepdim=True)
        std = torch.sqrt(var + self.eps)
        with torch.no_grad():
            running_std = torch.sqrt(self.running_var + self.eps)
            r = (std / running_std).clamp(1 / 3, 3)
            d = ((mean - self.running_mean) / running_std).clamp(-5, 5)
            count = x.numel() / x.shape[1]
            self.running_mean.lerp_(mean[0].to(self.running_mean), 0.01)
            self.running_var.lerp_(var[0].to(self.running_var) * (count / (count - 1)), 0.01)
        return ((x - mean) / std * r + d) * self.weight + self.bias


class FilterResponse(_Affine):
    """FRN with its thresholded linear unit."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, 1e-6, extra=0.0)

    def forward(self, x: Tensor) -> Tensor:
        power = x.square().mean((2, 3), keepdim=True)
        return torch.maximum(self.weight * (x * torch.rsqrt(power + self.eps)) + self.bias, self.extra)


class EvoNormS0(_Affine):
    def __init__(self, num_features: int, num_groups: int) -> None:
        super().__init__(num_features, 1e-5, extra=1.0)
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (self.num_groups, -1))
        std = torch.sqrt(groups.var((2, 3, 4), correction=0, keepdim=True) + self.eps)
        std = std.expand_as(groups).flatten(1, 2)
        return x * torch.sigmoid(self.extra * x) / std * self.weight + self.bias


class EvoNormB0(_Affine):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, 1e-5, extra=1.0)

    def forward(self, x: Tensor) -> Tensor:
        batch_var = x.var((0, 2, 3), correction=0, keepdim=True)
        image_std = torch.sqrt(x.var((2, 3), correction=0, keepdim=True) + self.eps)
        with torch.no_grad():
            count = x.numel() / x.shape[1]
            self.running_var.lerp_(batch_var[0].to(self.running_var) * (count / (count - 1)), 0.1)
        std = torch.maximum(torch.sqrt(batch_var + self.eps), self.extra * x + image_std)
        return x / std * self.weight + self.bias


class PixelLayerNorm(nn.LayerNorm):
    """torch's LayerNorm over the channels of each pixel, for (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return output.contiguous() if input.is_contiguous() else output


class BatchNormReLU(nn.BatchNorm2d):
    """BN and the activation behind it: beside the kinds that include theirs."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))
