"""Virtual batch normalization: each image with one fixed reference batch. Salimans et al. 2016."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import Norm, like_input


class VirtualBatchNorm2d(Norm):
    """Image i is normalized by the statistics of (reference batch, image i): BN over those n + 1 images.

    Input and output (N, C, H, W), whose first `num_reference` images are the reference batch, normalized by
    its own statistics. They are forwarded anew at each step, and gradients flow through them.
    mean_i = (n mean_ref + mean(x_i)) / (n + 1); the variance is merged by Chan's formula, which equals the
    paper's E[x^2] - mean^2 without its cancellation. Training and eval mode are the same, and an output does
    not depend on the batch-mates. Step cost: (1 + n / N) times BN's.

    Only inside `VirtualBatchNet`, which brings the reference; ValueError without it.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps, self.num_reference = num_features, eps, 0
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        n = self.num_reference
        if not 0 < n <= input.shape[0]:
            raise ValueError(
                f"{self.where}: no reference batch: wrap the model, VirtualBatchNet(model, reference_images)"
            )
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0)  # (N, C), an image each
        mean_ref = mean[:n].mean(0)
        var_ref = var[:n].mean(0) + (mean[:n] - mean_ref).square().mean(0)
        self.check_values(n * x.shape[2] * x.shape[3], "in the reference batch")
        share = 1 / (n + 1)
        off = mean[n:] - mean_ref
        mixed_mean = mean_ref + share * off
        mixed_var = (1 - share) * var_ref + share * var[n:] + share * (1 - share) * off.square()
        mean = torch.cat([mean_ref.expand(n, -1), mixed_mean])
        var = torch.cat([var_ref.expand(n, -1), mixed_var])
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        output = torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])
        return like_input(output.to(input.dtype), input)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, num_reference={self.num_reference}"


class VirtualBatchNet(nn.Module):
    """`model` with a reference batch put before every input, and its outputs taken off again.

    `reference` (n, 3, H, W): images as the model takes them, the same on every rank; kept as a buffer.
    Outputs may be tensors or (named) tuples, lists or mappings of them, as of a network with auxiliary heads.
    """

    reference: Tensor

    def __init__(self, model: nn.Module, reference: Tensor) -> None:
        super().__init__()
        if reference.dim() != 4 or len(reference) < 1:
            raise ValueError(
                f"VirtualBatchNet: reference {tuple(reference.shape)} is not (n, C, H, W), n >= 1"
            )
        layers = [module for module in model.modules() if isinstance(module, VirtualBatchNorm2d)]
        if not layers:
            raise ValueError(
                f"VirtualBatchNet: {type(model).__name__} holds no VirtualBatchNorm2d to read the reference batch: "
                'swap_norms(model, "vbn") first'
            )
        self.model = model
        self.register_buffer("reference", reference)
        for layer in layers:
            layer.num_reference = len(reference)

    def forward(self, input: Tensor) -> Any:
        return self._strip(self.model(torch.cat([self.reference.to(input.dtype), input])))

    def _strip(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output[len(self.reference) :]
        if isinstance(output, Mapping):
            return type(output)({key: self._strip(part) for key, part in output.items()})  # type: ignore[call-arg]
        if isinstance(output, (tuple, list)):
            parts = [self._strip(part) for part in output]
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)  # type: ignore[call-arg]
        return output
