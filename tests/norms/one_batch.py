"""One batch, shared among ranks: what each rank computes on its part, against one rank with all the images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bnbench.norms import build_norm

TOLERANCE = 1e-12
# Every kind whose statistics can span ranks; a schedule that corrects from the first step on.
KINDS = {
    "bn": {"momentum": 0.3},
    "brn": {"momentum": 0.3, "r_max": 1.5, "d_max": 0.5, "warmup": 0, "r_end": 0, "d_end": 0},
    "evonorm_b0": {"momentum": 0.3},
}


class Case(NamedTuple):
    """One batch: `sizes` images on each rank of a group, `pixels` (H, W); each channel's own mean and deviation."""

    sizes: tuple[int, ...]
    mean: float = 0
    std: float = 1
    channels: int = 5
    pixels: tuple[int, int] = (4, 3)
    channels_last: bool = False
    seed: int = 0


def _data(case: Case) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Images, weights of a loss and a layer's state, the same wherever this is called."""
    generator = torch.Generator().manual_seed(case.seed + sum(case.sizes) + 17 * len(case.sizes))
    shape = (sum(case.sizes), case.channels, *case.pixels)
    x = torch.randn(shape, dtype=torch.double, generator=generator)
    # Exactly these moments: two values drawn freely may lie so close that one batch shows its own rounding.
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    x = (x - mean) / var.sqrt() * case.std + case.mean
    target = torch.randn(shape, dtype=torch.double, generator=generator)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    state = {
        key: torch.rand(case.channels, dtype=torch.double, generator=generator) + 0.5
        for key in ("weight", "bias", "v", "running_mean", "running_var")
    }
    # Near the batch's, so that renormalization does not clip every channel.
    state["running_mean"] = (state["running_mean"] - 1) * case.std + case.mean
    state["running_var"] *= case.std**2
    return x.contiguous(memory_format=layout), target, state


def _layer(kind: str, case: Case, state: dict[str, torch.Tensor], **options) -> nn.Module:
    norm = build_norm(kind, case.channels, **KINDS[kind], **options).double()
    norm.load_state_dict(
        {key: state.get(key, tensor).to(tensor.dtype) for key, tensor in norm.state_dict().items()}
    )
    return norm


def on_rank(world, cases, groups, kinds=tuple(KINDS)):
    """This rank's share of each case, for each kind; gradients averaged by DDP, the loss scaled as that needs."""
    rank = world.place.rank
    made = [dist.new_group(ranks) for ranks in groups]  # every rank makes every group
    (number,) = (i for i, ranks in enumerate(groups) if rank in ranks)
    return _share(made[number], groups[number].index(rank), cases, kinds)


def on_node(world, cases, ranks):
    """The same on the process groups that bnbench makes of consecutive ranks."""
    world.group(ranks)
    return _share(world.group(ranks), world.place.rank % ranks, cases, tuple(KINDS))


def _share(group, place, cases, kinds):
    results = []
    for kind in kinds:
        for case in cases:
            x, target, state = _data(case)
            norm = _layer(kind, case, state, process_group=group)
            model = DistributedDataParallel(norm, process_group=group, broadcast_buffers=False)
            mine = x.split(case.sizes)[place].clone().requires_grad_()
            images, ranks = len(mine), len(case.sizes)
            y = model(mine)
            squares = ((y - target.split(case.sizes)[place]) ** 2).sum()
            # A rank's own loss is a mean over its images; DDP averages over ranks.
            (squares / max(images, 1) * (ranks * images / len(x))).backward()
            gradients = {name: p.grad for name, p in norm.named_parameters()}
            # None stands for zeros where a rank has no images.
            slope = torch.zeros_like(mine) if mine.grad is None else mine.grad / ranks
            results.append((y.detach(), slope, gradients, norm.state_dict()))
    return results


def assert_one_batch(by_rank, cases, kinds=tuple(KINDS)):
    """`by_rank` (the ranks of one group) against one rank with all the images; torch's own layer for `bn`."""
    number = 0
    for kind in kinds:
        for case in cases:
            x, target, state = _data(case)
            if kind == "bn":
                norm: nn.Module = nn.BatchNorm2d(case.channels, momentum=0.3).double()
                norm.load_state_dict({key: state.get(key, t) for key, t in norm.state_dict().items()})
            else:
                norm = _layer(kind, case, state)
            x.requires_grad_()
            y = norm(x)
            (((y - target) ** 2).sum() / len(x)).backward()
            parts = [results[number] for results in by_rank]
            number += 1
            _assert_close(torch.cat([part[0] for part in parts]), y, (kind, "output", case))
            _assert_close(torch.cat([part[1] for part in parts]), x.grad, (kind, "input gradient", case))
            for part in parts:
                for name, parameter in norm.named_parameters():
                    _assert_close(part[2][name], parameter.grad, (kind, name, case))
                for name, tensor in norm.state_dict().items():
                    _assert_close(part[3][name], tensor, (kind, name, case))


def _assert_close(got, want, what):
    """To 1e-12 of the values' scale: a deviation of 0.05 makes gradients of 15."""
    scale = max(1.0, want.abs().max().item())
    assert got.shape == want.shape, what
    assert (got - want).abs().max() < TOLERANCE * scale, what
