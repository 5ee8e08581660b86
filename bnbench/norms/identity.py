"""No normalization: the control, and what networks without norms are built on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Norm

INITS = ("none", "zero_gamma", "fixup")


class NoNorm2d(Norm):
    """y = weight * x + bias per channel, or y = x without `affine`: no statistics of any kind.

    Input and output (N, C, H, W). Depth needs more than that: `swap_norms(model, "none", init=...)` starts
    each residual branch at zero (`zero_gamma`; De & Smith 2020) or as Fixup does (`fixup`; Zhang et al. 2019).
    """

    def __init__(self, num_features: int, *, affine: bool = True) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        if self.weight is None or self.bias is None:
            return input
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return torch.addcmul(bias[:, None, None], input, weight[:, None, None])

    def extra_repr(self) -> str:
        return f"{self.num_features}, affine={self.weight is not None}"
