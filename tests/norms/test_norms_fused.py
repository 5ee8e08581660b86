"""SyncBatchNorm2d by torch's fused function, which needs CUDA: here on the CPU, with its five kernels written out.

What this holds is ours and torch's Python: which arguments go where, what is gathered, reduced and counted. The
kernels themselves want a GPU.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from bnbench.norms import SyncBatchNorm2d, sync
from tests.norms.one_batch import Case, assert_one_batch, on_rank
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms
CHANNEL = (1, -1, 1, 1)


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt()


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return (x - mean.view(CHANNEL)) * (invstd * weight).view(CHANNEL) + bias.view(CHANNEL)


def _gather_stats(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts / counts.sum())[:, None]
    merged = (share * mean).sum(0)
    var = (share * (invstd**-2 - eps + (mean - merged) ** 2)).sum(0)
    running_mean.lerp_(merged, momentum)
    running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return merged, (var + eps).rsqrt()


def _backward_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_dy = dy.sum((0, 2, 3))
    sum_dy_xmu = (dy * (x - mean.view(CHANNEL))).sum((0, 2, 3))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()


def _backward_elemt(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    m, total = mean.view(CHANNEL), count.sum()
    slope = (invstd**2 * sum_dy_xmu / total).view(CHANNEL)
    return (dy - (sum_dy / total).view(CHANNEL) - (x - m) * slope) * (weight * invstd).view(CHANNEL)


KERNELS = {
    "batch_norm_stats": _stats,
    "batch_norm_elemt": _elemt,
    "batch_norm_gather_stats_with_counts": _gather_stats,
    "batch_norm_backward_reduce": _backward_reduce,
    "batch_norm_backward_elemt": _backward_elemt,
}


def _on_rank_fused(world, cases, groups):
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    fused: list[int] = []

    def forward(layer: SyncBatchNorm2d, x: Tensor) -> Tensor:
        fused.append(len(x))
        return sync._fused(layer, x, layer.group)

    SyncBatchNorm2d.forward = forward  # type: ignore[method-assign]  # this rank's process ends with the test
    results = on_rank(world, cases, groups, ("bn",))
    # The counter is the module's own doing, before the fused call.
    for *_, state in results:
        state["num_batches_tracked"] += 1
    assert len(fused) == len(cases)
    return results


@pytest.mark.parametrize("sizes", [((4, 4), (2, 6), (7, 1), (1, 1)), ((3, 3, 3), (1, 4, 2), (0, 3, 5))])
def test_the_fused_function_over_ranks_is_one_batch(sizes):
    """Even and uneven shares, a rank without images, a mean of 1000, channels_last: as our own code on CPU."""
    cases = [Case(each) for each in sizes] + [Case(sizes[0], 1000), Case(sizes[1], 2, channels_last=True)]
    ranks = len(sizes[0])
    assert_one_batch(on_ranks(ranks, _on_rank_fused, cases, [list(range(ranks))]), cases, ("bn",))


def test_the_fused_function_has_the_arguments_that_we_give_it():
    from torch.nn.modules._functions import SyncBatchNorm as Fused

    names = list(inspect.signature(Fused.forward).parameters)[1:]
    assert names == [
        "input", "weight", "bias", "running_mean", "running_var", "eps", "momentum", "process_group", "world_size",
    ]  # fmt: skip
