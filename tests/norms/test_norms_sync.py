"""SyncBN over k ranks is BN on the concatenated batch: forward, every gradient, running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bnbench.norms import SyncBatchNorm2d, build_norm
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms
TOLERANCE = 1e-12
CHANNELS = 5


def _case(
    sizes: tuple[int, ...], mean: float, std: float
) -> tuple[torch.Tensor, torch.Tensor, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(sum(sizes) + 17 * len(sizes))
    shape = (sum(sizes), CHANNELS, 4, 3)
    x = torch.randn(shape, dtype=torch.double, generator=generator) * std + mean
    target = torch.randn(shape, dtype=torch.double, generator=generator)
    norm = nn.BatchNorm2d(CHANNELS, momentum=0.3).double()
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(CHANNELS, dtype=torch.double, generator=generator) + 0.5)
    return x, target, norm


def _on_rank(world, cases, ranks):
    """This rank's share of each case through SyncBN; the loss is scaled as uneven batches need."""
    results = []
    for sizes, mean, std in cases:
        x, target, reference = _case(sizes, mean, std)
        sync = build_norm("bn", CHANNELS, momentum=0.3, process_group=world.group(ranks)).double()
        sync.load_state_dict(reference.state_dict())
        place = world.place.rank % ranks
        mine = x.split(sizes)[place].requires_grad_()
        y = sync(mine)
        # DDP averages over ranks: the mean over the group's images is sum / n, scaled by the ranks.
        loss = ((y - target.split(sizes)[place]) ** 2).sum() * ranks / len(x)
        loss.backward()
        for parameter in sync.parameters():
            dist.all_reduce(parameter.grad, group=world.group(ranks))
            parameter.grad /= ranks
        results.append(
            (y.detach(), mine.grad / ranks, sync.weight.grad, sync.bias.grad, *sync.state_dict().values())
        )
    return results


def _reference(sizes, mean, std):
    x, target, norm = _case(sizes, mean, std)
    x.requires_grad_()
    y = norm(x)
    (((y - target) ** 2).sum() / len(x)).backward()
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, *norm.state_dict().values()


def _assert_equal(by_rank, cases):
    for number, (sizes, mean, std) in enumerate(cases):
        expected = _reference(sizes, mean, std)
        parts = [results[number] for results in by_rank]
        for index, name in enumerate(("output", "input gradient")):
            _assert_close(torch.cat([part[index] for part in parts]), expected[index], (name, sizes))
        for part in parts:
            for got, want in zip(part[2:], expected[2:], strict=True):
                _assert_close(got, want, (sizes, mean))


def _assert_close(got, want, case):
    """To 1e-12 of the values' scale: a deviation of 0.05 makes gradients of 15."""
    scale = max(1.0, want.abs().max().item())
    assert (got - want).abs().max() < TOLERANCE * scale, case


def test_two_ranks_are_one_batch():
    # Even, uneven, one image, none; and statistics that packed sums of squares would lose.
    cases = [((4, 4), 0, 1), ((2, 6), 0, 1), ((7, 1), 8, 0.05), ((5, 0), 0, 1), ((3, 5), 1000, 1)]
    _assert_equal(on_ranks(2, _on_rank, cases, 2), cases)


def test_three_ranks_are_one_batch():
    cases = [((3, 3, 3), 0, 1), ((1, 4, 2), 2, 1), ((0, 3, 5), 0, 1)]
    _assert_equal(on_ranks(3, _on_rank, cases, 3), cases)


def test_groups_of_ranks_do_not_mix():
    """Four ranks in groups of two: each pair is one batch, whatever the other pair holds."""
    cases = [((4, 4), 0, 1), ((2, 6), 5, 0.5)]
    by_rank = on_ranks(4, _on_rank, cases, 2)
    _assert_equal(by_rank[:2], cases)
    _assert_equal(by_rank[2:], cases)


def _count_collectives(world):
    calls = []
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast"):
        original = getattr(dist, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    norm = build_norm("syncbn", 3)
    y = norm(torch.randn(2, 3, 4, 4, requires_grad=True))
    forward = list(calls)
    y.sum().backward()
    backward = calls[len(forward) :]
    norm.eval()(torch.randn(1, 3, 4, 4))
    return forward, backward, len(calls)


def test_one_collective_forward_one_backward_none_in_eval():
    for forward, backward, total in on_ranks(2, _count_collectives):
        assert forward == ["all_gather_into_tensor"]
        assert backward == ["all_reduce"]
        assert total == 2


def _one_value(world):
    norm = build_norm("syncbn", 3)
    images = 1 if world.leads else 0
    with pytest.raises(ValueError, match="one value per channel"):
        norm(torch.randn(images, 3, 1, 1))
    return True


def test_one_value_over_all_ranks_is_an_error():
    assert on_ranks(2, _one_value) == [True, True]


def _half(world):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6) * 0.05 + 8
    norm = build_norm("syncbn", 3)
    y = norm(x[world.place.rank :: 2].bfloat16())
    return y.dtype, norm.running_var


def test_half_precision_keeps_its_statistics_in_fp32():
    x = (torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.05 + 8).bfloat16()
    want = 0.9 + 0.1 * x.float().var((0, 2, 3))
    for dtype, running_var in on_ranks(2, _half):
        assert dtype == torch.bfloat16
        torch.testing.assert_close(running_var, want, rtol=1e-5, atol=0)


def test_without_a_world_it_is_plain_bn():
    x = torch.randn(4, 3, 5, 5)
    sync, plain = SyncBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(sync(x), plain(x))
    assert torch.equal(sync.running_var, plain.running_var)


def test_deepcopy_keeps_state_mode_and_group():
    sync = SyncBatchNorm2d(3, process_group=None, momentum=0.2).double().eval()
    sync.weight.requires_grad_(False)
    with torch.no_grad():
        sync.running_mean.fill_(3)
    twin = copy.deepcopy(sync)
    assert not twin.training
    assert twin.momentum == 0.2
    assert not twin.weight.requires_grad
    assert twin.bias.requires_grad
    assert twin.weight.dtype == torch.double
    assert torch.equal(twin.running_mean, sync.running_mean)


def test_torchs_fused_kernel_takes_what_we_give_it():
    """The CUDA path calls it by position; a GPU machine runs it, this holds its signature."""
    import inspect

    from torch.nn.modules._functions import SyncBatchNorm as Fused

    names = list(inspect.signature(Fused.forward).parameters)[1:]
    assert names == [
        "input", "weight", "bias", "running_mean", "running_var", "eps", "momentum", "process_group", "world_size",
    ]  # fmt: skip
