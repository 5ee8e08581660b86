"""Group and ghost normalization of channels_last tensors on a GPU, in Triton: kernels that stream the tensor.

torch's GroupNorm knows no channels_last: it copies to NCHW and leaves its output so, and under autocast gives fp32. On
an H100 at ResNet-50's shapes it reached 12% of a copy's bandwidth, ghosts (a copy and torch's batch norm) 12 to 18%.

x lies in memory as (N, H W, C). `_moments` gives each piece of an image its mean and squared deviations a channel;
`_merged` puts those of a statistics group together by Chan, Golub & LeVeque's formula, as `sync.merge_statistics` does;
`_scaled` normalizes. Backward, `_products` sums dy and dy * (x - mean) of each piece, `_coefficients` puts them
together, `_gradient` maps dy and x to dx. All arithmetic is fp32, whatever the tensor's dtype; the output has the
input's, as batch normalization's.

Tables of statistics are (R, C): image n reads row n mod R. Groups have a row an image (R = N), ghosts one a ghost.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

TILE = 8192  # values a program holds: a thread of 8 warps has 32
COLUMNS = 128  # channels of a tile: 256 bytes a row in bf16
# Values of a tensor, below which torch's kernels and their copies took less on an H100 with a slow host: seven launches
# from Python were 0.8 to 1.5 ms there, forward and backward.
SMALLEST = 2**25
MERGED = 2048  # values that a merging program holds
OF_CHANNELS = 16  # channels of such a program where each has statistics of its own
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Triton's interpreter runs the same kernels on CPU tensors; the tests do.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_AT_ANY_SIZE = ContextVar("at_any_size", default=False)
AVAILABLE = importlib.util.find_spec("triton") is not None


def applies(x: Tensor) -> bool:
    """Whether these kernels take `x` (N, C, H, W): what else there is, torch's own do.

    Not in a compiled network: torch's compiler fuses the plain formula by itself. Nor for tensors so small that
    launching costs more than streaming, but `at_any_size`.
    """
    return (
        not torch.compiler.is_compiling()
        and AVAILABLE
        and (x.is_cuda or INTERPRETED)
        and x.dtype in DTYPES
        and x.numel() >= (1 if INTERPRETED or _AT_ANY_SIZE.get() else SMALLEST)
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@contextmanager
def at_any_size() -> Iterator[None]:
    """Within it small tensors are taken too: where launches cost nothing, as in a CUDA graph."""
    token = _AT_ANY_SIZE.set(True)
    try:
        yield
    finally:
        _AT_ANY_SIZE.reset(token)


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` of x (N, C, H, W) for which `applies`; output in its dtype and memory format.

    weight, bias (C,). Once differentiable.
    """
    width = x.shape[1] // num_groups
    mean, rstd, _ = _statistics(x, len(x), width, eps)
    return _Fused.apply(x, weight, bias, mean, rstd, width)


def ghost_norm(
    x: Tensor, ghosts: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalization of x (N, C, H, W), for which `applies`: image n is of group n mod `ghosts`.

    weight, bias (C,). The output in x's dtype and memory format; each group's mean and biased variance (ghosts, C),
    without gradients. Once differentiable.
    """
    mean, rstd, var = _statistics(x, ghosts, 1, eps)
    return _Fused.apply(x, weight, bias, mean, rstd, 1), mean, var


@torch.no_grad()
def _statistics(x: Tensor, table_rows: int, width: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of mean, 1 / sqrt(var + eps) and biased variance, over `width` neighbouring channels each."""
    n, c, h, w = x.shape
    grid, rows, columns = _tiles(x)
    mean, m2 = torch.empty(2, n, grid[1], c, dtype=torch.float32, device=x.device)
    _launch("_moments", x, grid, x, mean, m2, h * w, c, grid[1], rows, columns)
    tables = torch.empty(3, table_rows, c, dtype=torch.float32, device=x.device)
    sizes = (n, h * w, c, grid[1], table_rows)
    merging, shape = _merging(sizes, width, rows)
    _launch("_merged", x, merging, mean, m2, *tables, *sizes, shape[0], eps, *shape[1:])
    center, rstd, variance = tables
    return center, rstd, variance


class _Fused(torch.autograd.Function):
    """(x - mean) * rstd * weight + bias by tables (R, C), differentiated through their statistics, which are over
    `width` neighbouring channels of a row's images."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, width: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.width = width
        y = torch.empty_like(x)
        grid, rows, columns = _tiles(x)
        sizes = (x.shape[2] * x.shape[3], x.shape[1], len(mean))
        _launch("_scaled", x, grid, x, y, mean, rstd, weight, bias, *sizes, rows, columns)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        table_rows = len(mean)
        dy = grad.contiguous(memory_format=torch.channels_last)
        grid, rows, columns = _tiles(x)
        parts = torch.empty(2, n, grid[1], c, dtype=torch.float32, device=x.device)
        sizes = (n, h * w, c, grid[1], table_rows)
        _launch("_products", x, grid, x, dy, mean, *parts, *sizes[1:], rows, columns)
        tables = torch.empty(4, table_rows, c, dtype=torch.float32, device=x.device)
        sums, shift, slope = tables[:2], tables[2], tables[3]
        merging, shape = _merging(sizes, ctx.width, rows)
        _launch("_coefficients", x, merging, *parts, weight, rstd, sums, shift, slope, *sizes, *shape)
        dx = torch.empty_like(x)
        table = (h * w, c, table_rows, rows, columns)
        _launch("_gradient", x, grid, x, dy, dx, mean, rstd, weight, shift, slope, *table)
        d_bias, d_weight = sums.sum(1).to(weight.dtype)
        return dx, d_weight, d_bias, None, None, None


def _tiles(x: Tensor) -> tuple[tuple[int, int, int], int, int]:
    """The grid (images, pieces of an image, blocks of channels), and the rows and columns of a tile."""
    n, c, h, w = x.shape
    columns = min(COLUMNS, _power(c))
    rows = min(TILE // columns, _power(h * w))
    return (n, -(-h * w // rows), -(-c // columns)), rows, columns


def _merging(
    sizes: tuple[int, int, int, int, int], width: int, rows: int
) -> tuple[tuple[int, int], tuple[int, bool, int, int, int]]:
    """The grid (table rows, groups or blocks of channels), and a program's width, JOINT, LINES, COLUMNS and ROWS."""
    images, _, channels, pieces, table_rows = sizes
    joint = width > 1
    width = width if joint else min(OF_CHANNELS, channels)
    columns = _power(width)
    lines = min(max(1, MERGED // columns), _power(images // table_rows * pieces))
    return (table_rows, -(-channels // width)), (width, joint, lines, columns, rows)


def _power(size: int) -> int:
    """The next power of two: Triton's tiles have no other sides."""
    return 1 << (size - 1).bit_length()


def _launch(name: str, x: Tensor, grid: tuple[int, ...], *arguments: Any) -> None:
    from . import fused_kernels

    kernel: Any = getattr(fused_kernels, name)[grid]
    if x.is_cuda:
        with torch.cuda.device(x.device):
            kernel(*arguments, num_warps=8 if len(grid) == 3 else 4)
    else:
        kernel(*arguments)
