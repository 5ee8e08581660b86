"""Elementwise work a few images at a time: what several passes share stays in a core's cache.

On CPU a chain of elementwise operations over a large tensor is bound by memory; over a block of it, it is
not. Here and in the layers that use it: x (N, C, H, W) contiguous, statistics and coefficients (N, C).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**17  # values a core: 512 KiB in fp32, within the L2 cache of common server cores


def blocks(x: Tensor) -> Iterator[slice]:
    """Slices over the images of `x`; a single one on a GPU, whose launches cost more than its memory."""
    n = x.shape[0]
    if x.is_cuda or torch.compiler.is_compiling():
        step = max(n, 1)
    else:
        step = max(1, BLOCK * torch.get_num_threads() // max(1, x[0].numel())) if n else 1
    for start in range(0, n, step):
        yield slice(start, start + step)


def wide(x: Tensor) -> Tensor:
    """`x` in the dtype of its arithmetic: fp32 for half precision, else its own."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def over_pixels(per_channel: Tensor) -> Tensor:
    """(C,) or (N, C) shaped to go with (N, C, H, W)."""
    return per_channel[..., None, None]


def sum_pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) summed to (N, C)."""
    return x.sum((2, 3))


def joined(parts: list[Tensor], x: Tensor) -> Tensor:
    """The blocks' (n, C) statistics as (N, C); of a batch without images (0, C)."""
    return torch.cat(parts) if parts else x.new_zeros(x.shape[:2])


def image_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C) of each image's channels over H, W; no gradient flows."""
    _, c, h, w = x.shape
    x = x.detach().contiguous()
    means, variances = [], []
    for part in blocks(x):
        # Far faster on CPU than var_mean; with eps = 0, rstd^-2 is the variance, to all its digits.
        block = wide(x[part])
        _, mean, rstd = torch.native_group_norm(block, None, None, block.shape[0], c, h * w, c, 0.0)
        means.append(mean)
        variances.append(rstd.pow(-2))
    return joined(means, x), joined(variances, x)
