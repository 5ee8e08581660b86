"""Batch normalization by statistics that are fixed from the start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Norm, one_image_densely


class FrozenBatchNorm2d(Norm):
    """y = weight * (x - running_mean) / sqrt(running_var + eps) + bias, all four fixed buffers (C,).

    For networks whose pretrained statistics stay (He et al. 2016, detection); without any it is the identity
    but for eps. Buffers rather than parameters without gradient: DDP expects every parameter to have one.
    The keys are BatchNorm2d's, so that its state_dict loads. Input and output (N, C, H, W).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @one_image_densely
    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # torchvision's FrozenBatchNorm2d has no count.
        state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"
