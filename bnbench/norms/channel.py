"""Normalization of each image by itself: no statistics over images, no running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .base import Norm, like_input
from .blocks import wide


class GroupNorm(Norm, nn.GroupNorm):
    """Each image by the mean and biased variance of its C / num_groups channels and H, W. Wu & He 2018.

    Input and output (N, C, H, W); affine per channel. num_groups = C is InstanceNorm, 1 LayerNorm over CHW.
    On a GPU a large channels_last input takes `fused.group_norm`, whose output keeps the input's dtype under autocast
    too (torch's is fp32 there); `kernel` says which one the last forward took.
    Raises ValueError if `num_groups` does not divide `num_features` (`largest_groups` gives the nearest
    count that does), or if a group has one value.
    """

    def __init__(self, num_features: int, *, num_groups: int = 32, eps: float = 1e-5) -> None:
        check_groups("gn", num_groups, num_features)
        super().__init__(num_groups, num_features, eps=eps)
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        values = self.num_features // self.num_groups * input.shape[2] * input.shape[3]
        self.check_values(values, "group of an image")
        if self.by_triton(input):
            return fused.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        if input.is_cuda:  # its output is contiguous, whatever comes in
            return like_input(super().forward(input), input)
        # torch's CPU kernel for channels_last takes E[x^2] - mean^2, which loses the variance of fp32 at mean 8.
        return like_input(super().forward(input.contiguous()), input)


class LayerNorm(GroupNorm):
    """Each image by the mean and variance of all of it, over CHW. Ba, Kiros & Hinton 2016.

    Input and output (N, C, H, W); affine per channel, as in the GroupNorm paper. "LayerNorm" in ConvNeXt and
    detectron2 is another layer: `LayerNorm2d`, per pixel over C.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features, num_groups=1, eps=eps)


class LayerNorm2d(Norm):
    """Each pixel by the mean and biased variance of its C channels, affine per channel. ConvNeXt's norm.

    Input and output (N, C, H, W). Liu et al. 2022. Raises ValueError for one channel.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        self.check_values(self.num_features, "of a pixel")
        # torch's CPU kernel sums the gradients of gamma and beta in the input's dtype: bf16 stops at 2^8 pixels.
        x, weight, bias = [t if t.is_cuda else wide(t) for t in (input, self.weight, self.bias)]
        output = F.layer_norm(x.permute(0, 2, 3, 1), (self.num_features,), weight, bias, self.eps)
        output = (output if input.is_cuda else output.to(input.dtype)).permute(0, 3, 1, 2)
        return output.contiguous() if input.is_contiguous() else output

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class InstanceNorm2d(Norm, nn.InstanceNorm2d):
    """Each channel of each image by its own mean and biased variance over H, W. Ulyanov et al. 2016.

    Input and output (N, C, H, W); affine, no running statistics. Raises ValueError for maps of 1x1.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        self.check_values(input.shape[2] * input.shape[3], "of an image")
        if self.by_triton(input):
            return fused.group_norm(input, self.num_features, self.weight, self.bias, self.eps)
        # F.instance_norm loses channels_last, takes no empty batch, and differentiates one image wrongly where
        # the gradient is channels_last (torch 2.11 to 2.15, CPU). A group a channel is the same, and faster.
        # Its own backward pass in channels_last takes twice as long as copying to and fro.
        y = F.group_norm(input.contiguous(), self.num_features, self.weight, self.bias, self.eps)
        return like_input(y, input)


def check_groups(kind: str, num_groups: int, num_features: int) -> None:
    """Raise ValueError, with the divisors, unless `num_groups` divides `num_features`."""
    if num_groups < 1 or num_features % num_groups:
        divisors = [n for n in range(1, num_features + 1) if num_features % n == 0]
        raise ValueError(
            f"{kind}: num_groups={num_groups} does not divide num_features={num_features}; "
            f"choose one of {', '.join(map(str, divisors))}"
        )


def largest_groups(num_features: int, num_groups: int) -> int:
    """The largest divisor of `num_features` not above `num_groups`: the stated policy of a model swap."""
    return max(n for n in range(1, min(num_groups, num_features) + 1) if num_features % n == 0)
