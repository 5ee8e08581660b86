"""Filter Response Normalization with its thresholded linear unit. Singh & Krishnan 2020."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Norm, like_input
from .blocks import blocks, joined, over_pixels, sum_pixels, wide


class FilterResponseNorm2d(Norm):
    """y = max(z, tau), z = gamma * x / sqrt(mean_HW(x^2) + |eps|) + beta; tau (C,) learned, from 0.

    Input and output (N, C, H, W). The maximum (TLU) is the activation: no ReLU belongs behind it. With
    `act=False` y = z, and there is no tau. `learn_eps`: eps is a parameter (C,), for 1x1 maps, where the norm
    is otherwise nearly the sign of x.

    For the backward pass x alone is kept (torch's BN and ReLU together keep two such tensors); z is worked
    out again. Where z = tau the gradient goes to tau (timm halves it, and its eps is 1e-5). Once differentiable.
    """

    includes_activation = True

    def __init__(
        self, num_features: int, *, eps: float = 1e-6, learn_eps: bool = False, act: bool = True
    ) -> None:
        super().__init__()
        self.num_features, self.act = num_features, act
        self.eps = nn.Parameter(torch.full((num_features,), eps)) if learn_eps else eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.tau = nn.Parameter(torch.zeros(num_features)) if act else None

    def forward(self, input: Tensor) -> Tensor:
        self.check_input(input)
        eps = self.eps.abs() if isinstance(self.eps, Tensor) else self.eps
        return like_input(_FilterResponse.apply(input, self.weight, self.bias, self.tau, eps), input)

    def extra_repr(self) -> str:
        eps = "learned" if isinstance(self.eps, Tensor) else self.eps
        return f"{self.num_features}, eps={eps}, act={self.act}"


class _FilterResponse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps: Tensor | float
    ) -> Tensor:
        x = input.contiguous()
        y = torch.empty_like(x)
        pixels = x.shape[2] * x.shape[3]
        rstds = []
        for part in blocks(x):
            block = wide(x[part])
            power = torch.linalg.vector_norm(block, dim=(2, 3)).square_().div_(pixels)
            rstds.append(torch.rsqrt(power + eps))
            z = block.mul(over_pixels(weight * rstds[-1])).add_(over_pixels(bias))
            y[part] = z if tau is None else torch.maximum(z, over_pixels(tau), out=z)
        ctx.save_for_backward(x, weight, bias, tau, joined(rstds, x))
        ctx.learned_eps = isinstance(eps, Tensor)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, tau, rstd = ctx.saved_tensors
        dy, dx = grad.contiguous(), torch.empty_like(x)
        pixels = x.shape[2] * x.shape[3]
        sum_dy, sum_dz, sum_dz_x = (torch.empty_like(rstd) for _ in range(3))
        for part in blocks(x):
            block, dz = wide(x[part]), wide(dy[part])
            scale = weight * rstd[part]
            if tau is not None:
                sum_dy[part] = sum_pixels(dz)
                above = block.mul(over_pixels(scale)).add_(over_pixels(bias - tau))  # z - tau
                dz = torch.ops.aten.threshold_backward(dz, above, 0)
            sum_dz[part] = sum_pixels(dz)
            sum_dz_x[part] = sum_pixels(dz * block)
            # Through the mean square: d rsqrt(p + eps) / dx = -rstd^3 x / pixels.
            inner = sum_dz_x[part] * scale * rstd[part].square() / -pixels
            dx[part] = dz.mul(over_pixels(scale)).addcmul_(block, over_pixels(inner))
        d_tau = None if tau is None else (sum_dy - sum_dz).sum(0)
        d_eps = (-0.5 * sum_dz_x * weight * rstd**3).sum(0) if ctx.learned_eps else None
        return dx, (sum_dz_x * rstd).sum(0), sum_dz.sum(0), d_tau, d_eps
