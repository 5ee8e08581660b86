"""A norm over k ranks is that norm on the concatenated batch: forward, every gradient, running statistics."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from bnbench.norms import SyncBatchNorm2d, build_norm
from tests.norms.one_batch import KINDS, TOLERANCE, Case, assert_one_batch, on_node, on_rank
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms


def test_two_ranks_are_one_batch():
    """Even and uneven; one image; no image; statistics that packed sums of squares would lose.

    Rules out: wrong input gradients with unequal batches (pytorch PR 36382), a rank without images that
    fails or hangs (pytorch #74944), gamma and beta reduced twice (nnabla #1120).
    """
    cases = [
        Case((4, 4)), Case((2, 6)), Case((7, 1), 8, 0.05), Case((5, 0)), Case((0, 2)), Case((3, 5), 1000),
        Case((1, 1), pixels=(1, 1)), Case((3, 1), pixels=(1, 1)), Case((2, 3), channels_last=True),
    ]  # fmt: skip
    assert_one_batch(on_ranks(2, on_rank, cases, [[0, 1]]), cases)


def test_three_ranks_are_one_batch():
    cases = [Case((3, 3, 3)), Case((1, 4, 2), 2), Case((0, 3, 5)), Case((0, 0, 2)), Case((1, 2, 0), 1000)]
    assert_one_batch(on_ranks(3, on_rank, cases, [[0, 1, 2]]), cases)


def test_four_ranks_are_one_batch():
    cases = [Case((2, 2, 2, 2)), Case((1, 4, 0, 2), 2), Case((1, 1, 1, 5), 1000)]
    assert_one_batch(on_ranks(4, on_rank, cases, [[0, 1, 2, 3]]), cases)


@pytest.mark.parametrize("groups", [[[0, 2], [1, 3]], [[3, 0], [1, 2]]])
def test_groups_of_any_ranks_do_not_mix(groups):
    """Four ranks in groups of two, not consecutive, or not in order: each pair is one batch, alone."""
    cases = [Case((4, 4)), Case((2, 6), 5, 0.5), Case((0, 3))]
    by_rank = on_ranks(4, on_rank, cases, [sorted(ranks) for ranks in groups])
    for ranks in groups:
        assert_one_batch([by_rank[rank] for rank in sorted(ranks)], cases)


def test_groups_of_unequal_size():
    cases = [Case((4, 4)), Case((1, 2))]
    by_rank = on_ranks(3, _groups_of_two_and_one, cases)
    assert_one_batch(by_rank[:2], cases)
    alone = [case._replace(sizes=(sum(case.sizes),)) for case in cases]
    assert_one_batch(by_rank[2:], alone)


def _groups_of_two_and_one(world, cases):
    if world.place.rank == 2:
        cases = [case._replace(sizes=(sum(case.sizes),)) for case in cases]
    return on_rank(world, cases, [[0, 1], [2]])


def test_two_nodes_of_two_ranks():
    cases = [Case((4, 4)), Case((2, 6), 5, 0.5)]
    by_rank = on_ranks(4, on_node, cases, 2)
    assert_one_batch(by_rank[:2], cases)
    assert_one_batch(by_rank[2:], cases)


def _cases(ranks: int) -> st.SearchStrategy[list[Case]]:
    sizes = st.tuples(*[st.integers(0, 4)] * ranks).filter(lambda sizes: sum(sizes) > 1)
    # Up to 40 deviations off zero: at 2,000 the rounding of one batch's own mean is what is seen.
    case = st.builds(
        Case, sizes, st.sampled_from([0, 3, -20]), st.sampled_from([0.5, 1, 7]), st.integers(1, 6),
        st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans(), st.integers(0, 2**20),
    )  # fmt: skip
    return st.lists(case, min_size=12, max_size=12)


# No shrinking: each try starts a world. The failing case is in the message.
@pytest.mark.parametrize("ranks", [2, 3, 4])
@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_any_split_is_one_batch(ranks, data):
    cases = data.draw(_cases(ranks))
    assert_one_batch(on_ranks(ranks, on_rank, cases, [list(range(ranks))]), cases)


def _statistics(world, sizes):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(sum(sizes), 3, 1, 2, dtype=torch.double, generator=generator)
    norm = build_norm("syncbn", 3, momentum=1.0).double()
    mine = x.split(sizes)[world.place.rank]
    norm(mine).sum().backward()
    return norm.running_var, norm.weight.grad, norm.bias.grad


def test_running_variance_is_unbiased_by_the_count_of_all_ranks():
    """Not by the local count (pytorch #22192), and not biased (detectron2's NaiveSyncBN)."""
    sizes = (1, 4)
    x = torch.randn(5, 3, 1, 2, dtype=torch.double, generator=torch.Generator().manual_seed(7))
    results = on_ranks(2, _statistics, sizes)
    for running_var, _, _ in results:
        torch.testing.assert_close(running_var, x.var((0, 2, 3), correction=1), rtol=1e-14, atol=0)
    # The gradients of gamma and beta are each rank's own: DDP alone reduces them (nnabla #1120).
    assert [bias[0].item() for _, _, bias in results] == [2.0, 8.0]
    xhat = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    for (_, weight, _), part in zip(results, xhat.split(sizes), strict=True):
        torch.testing.assert_close(weight, part.sum((0, 2, 3)), rtol=0, atol=1e-13)


def _count_collectives(world):
    """[collective, values, dtype] of each kind's forward, backward and eval; the dtype of half inputs' too."""
    calls: list[list[tuple[str, int, torch.dtype]]] = [[]]
    names = (
        "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier",
        "reduce", "reduce_scatter_tensor", "gather", "scatter", "all_to_all", "all_to_all_single", "send", "recv",
    )  # fmt: skip
    for name in names:
        original = getattr(dist, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            mine = args[1] if _name == "all_gather_into_tensor" else args[0]
            calls[-1].append((_name, mine.numel(), mine.dtype))
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    results = {}
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            calls.clear()
            calls.append([])
            norm = build_norm(kind, 7, process_group=dist.group.WORLD)
            norm = norm.double() if dtype == torch.float64 else norm
            y = norm(torch.randn(2, 7, 4, 4).to(dtype).requires_grad_())
            calls.append([])
            y.sum().backward()
            calls.append([])
            # Eval on one rank only: it must not wait for the others (pytorch #48988).
            if world.leads:
                norm.eval()(torch.randn(1, 7, 4, 4, dtype=dtype, requires_grad=True)).sum().backward()
            results[kind, dtype] = calls.copy()
    return results


def test_one_collective_forward_one_backward_none_in_eval():
    """And what they carry: 2C + 2 values, then 2C (evonorm_b0: C), in fp32 for half inputs."""
    for results in on_ranks(2, _count_collectives):
        for (kind, dtype), (forward, backward, evaluation) in results.items():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert forward == [("all_gather_into_tensor", 2 * 7 + 2, wide)], kind
            assert backward == [("all_reduce", 7 if kind == "evonorm_b0" else 14, wide)], kind
            assert evaluation == [], kind


def _under_autocast(world):
    """A bf16 convolution's output, at mean 8 and deviation 0.05, by each kind: (y, running variance)."""
    x, results = _bf16_images(), {}
    for kind in KINDS:
        norm = build_norm(kind, 3, momentum=1.0, process_group=dist.group.WORLD)
        mine = x[world.place.rank :: 2].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = norm(mine)
        y.float().square().sum().backward()
        results[kind] = y.detach(), norm.running_var, norm.weight.grad.dtype, mine.grad
    return results


def _bf16_images():
    return (torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.05 + 8).bfloat16()


def test_half_precision_keeps_its_statistics_in_fp32():
    x = _bf16_images().double()
    running_var = x.var((0, 2, 3)).float()
    for rank, results in enumerate(on_ranks(2, _under_autocast)):
        for kind, (y, got_var, grad_dtype, x_grad) in results.items():
            assert y.dtype == x_grad.dtype == torch.bfloat16
            assert grad_dtype == torch.float32
            torch.testing.assert_close(got_var, running_var, rtol=1e-5, atol=0, msg=kind)
            want = build_norm(kind, 3, momentum=1.0).double()(x)[rank::2]
            # Half a unit in the last place of bf16, and 8's own 1e-6 in fp32 over 0.05.
            torch.testing.assert_close(y.double(), want, rtol=2**-8, atol=1e-4, msg=kind)


def test_without_a_world_it_is_plain_bn():
    x = torch.randn(4, 3, 5, 5)
    sync, plain = SyncBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(sync(x), plain(x))
    assert torch.equal(sync.running_var, plain.running_var)


def test_deepcopy_keeps_state_and_mode():
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


def _copies(world):
    """A deep copy of a model shares its process group, and nothing else; a state_dict carries none."""
    for kind in KINDS:
        torch.manual_seed(0)
        group = world.group(2)
        model = nn.Sequential(*(build_norm(kind, 3, process_group=group) for _ in range(2)))
        twin = copy.deepcopy(model)
        assert twin[0].process_group is twin[1].process_group is group
        x = torch.randn(4, 3, 4, 4)[world.place.rank :: 2]
        assert torch.equal(model(x), twin(x))
        for mine, its in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(mine, its)
            assert mine.data_ptr() != its.data_ptr()
        kept = io.BytesIO()
        torch.save(model.state_dict(), kept)
        kept.seek(0)
        alone = nn.Sequential(*(build_norm(kind, 3) for _ in range(2)))
        alone.load_state_dict(torch.load(kept, weights_only=True))
        assert torch.equal(alone.eval()(x), model.eval()(x))
    return True


def test_copies_and_checkpoints_of_layers_with_a_group():
    assert on_ranks(2, _copies) == [True, True]


def _compiled(world):
    """Each kind compiled against itself, forward and backward."""
    results = {}
    for kind in KINDS:
        torch.manual_seed(1)
        plain = build_norm(kind, 3, process_group=dist.group.WORLD).double()
        norm = copy.deepcopy(plain)
        x = torch.randn(4, 3, 4, 4, dtype=torch.double)[world.place.rank :: 2].clone().requires_grad_()
        compiled = torch.compile(norm, backend="eager")
        outputs = []
        for layer in (compiled, plain):
            for _ in range(2):
                x.grad = None
                y = layer(x)
                y.square().sum().backward()
            outputs.append((y, x.grad))
        results[kind] = max((got - want).abs().max().item() for got, want in zip(*outputs, strict=True))
        assert torch.equal(norm.weight.grad, plain.weight.grad)
        assert torch.equal(norm.running_var, plain.running_var)
    return results


def test_compiled_across_ranks_with_graph_breaks():
    """The count of values over all ranks is read on the host, to refuse a count of one: a break in the graph."""
    for differences in on_ranks(2, _compiled):
        assert all(value < TOLERANCE for value in differences.values()), differences
