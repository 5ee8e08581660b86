"""Operations and collectives of a step: by hand, by torch's own counter, by formula on real ranks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bnbench.models import build_model
from bnbench.training.counting import FORMULAS, Collective, Counting, by_owner
from tests.ranks import on_ranks

FLOAT = 4


def _step(network: nn.Module, images: torch.Tensor) -> None:
    output = network(images)
    logits = output if isinstance(output, torch.Tensor) else output[0]
    F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)).backward()


# Operations


def test_a_convolution_and_a_linear_layer_by_hand():
    n, c, k, side, classes = 3, 4, 6, 8, 5
    network = nn.Sequential(
        nn.Conv2d(c, k, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(k * side**2, classes)
    )
    conv, linear = 2 * n * k * side**2 * c * 9, 2 * n * k * side**2 * classes
    with Counting() as seen:
        _step(network, torch.randn(n, c, side, side))
    # The input of the first layer needs no gradient: two thirds of what a layer in the middle takes.
    assert seen.flops == 2 * conv + 3 * linear
    assert seen.collectives == []


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_takes_what_it_takes_forward(transposed, groups, stride):
    build = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = build(8, 16, 3, stride=stride, groups=groups)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with Counting() as forward:
        y = layer(x)
    with Counting() as both:
        torch.autograd.grad(y.sum(), [x, layer.weight], retain_graph=True)
    with Counting() as one:
        torch.autograd.grad(y.sum(), [layer.weight])
    places = x if transposed else y  # where a filter is applied
    assert forward.flops == 2 * 9 * (8 * 16 // groups) * places.numel() // places.shape[1]
    assert (both.flops, one.flops) == (2 * forward.flops, forward.flops)


def test_a_formula_that_fails_costs_the_count_alone(monkeypatch):
    def fails(*args, **kwargs):
        raise AssertionError

    monkeypatch.setitem(FORMULAS, torch.ops.aten.mm, fails)
    x = torch.ones(2, 2)
    with Counting() as seen:
        y = x @ x
        F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    assert torch.equal(y, 2 * x) and seen.flops is None


@pytest.mark.parametrize(
    ("model", "side", "norm", "options"),
    [
        *(("resnet8", 16, norm, {"width": 8}) for norm in ("bn", "gn", "frn", "evonorm_s0", "ws_gn", "none")),
        ("cifar_vgg11", 32, "bn", {}),
        ("cifar_densenet", 8, "bn", {"depth": 22}),
    ],
)
def test_it_agrees_with_torch(model, side, norm, options):
    network = build_model(model, 10, norm=norm, **options)
    images = torch.randn(4, 3, side, side)
    with Counting() as mine:
        _step(network, images)
    with FlopCounterMode(display=False) as torchs:
        _step(network, images)
    assert mine.flops == torchs.get_total_flops() > 1e5


def test_a_norm_adds_no_operations_that_count():
    """Matrix products and convolutions are the network's, whatever stands between them: MFU has one numerator."""
    counts = set()
    for norm in ("bn", "gn", "ln", "frn", "evonorm_b0", "ws_bn", "none"):
        with Counting() as seen:
            _step(build_model("resnet8", 10, norm=norm, width=16), torch.randn(4, 3, 8, 8))
        counts.add(seen.flops)
    assert len(counts) == 1


def test_only_the_passes_of_training_count():
    part, x = "forward", torch.ones(2, 2)
    with Counting(lambda: part) as seen:
        x @ x
        part = "backward"
        x @ x
        part = "other"
        x @ x
    assert seen.flops == 2 * 2**4


def test_counting_changes_no_bit():
    def grads(counted: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network, images = build_model("resnet8", 10, norm="evonorm_b0", dropout=0.3), torch.randn(4, 3, 8, 8)
        if counted:
            with Counting():
                _step(network, images)
        else:
            _step(network, images)
        return [*(p.grad for p in network.parameters()), *network.buffers(), torch.get_rng_state()]

    for mine, theirs in zip(grads(True), grads(False), strict=True):
        assert torch.equal(mine, theirs)


def test_a_compiled_network_runs_compiled_while_it_is_counted():
    runs = []

    def backend(graph, inputs):
        return lambda *args: runs.append(1) or graph(*args)

    network, images = build_model("resnet8", 10, width=4), torch.randn(4, 3, 8, 8)
    eager = copy.deepcopy(network)
    network.compile(backend=backend)
    _step(network, images)
    before = len(runs)
    with Counting() as seen:
        _step(network, images)
    assert len(runs) == 2 * before > 0
    with Counting() as other:
        _step(eager, images)
    assert seen.flops == other.flops


# Collectives


def _every_kind(world):
    x, many = torch.ones(6), [torch.ones(6) for _ in range(2)]
    gathered, pair = torch.ones(12), torch.ones(2, 3, dtype=torch.float64)
    rank = world.place.rank
    with Counting() as seen:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(gathered, x)
        dist.all_gather(many, x)
        dist.broadcast(pair, src=0)
        dist.reduce(x, dst=0)
        dist.gather(x, many if rank == 0 else None, dst=0)
        dist.scatter(x, many if rank == 0 else None, src=0)
        dist.all_to_all_single(gathered.clone(), gathered)
        dist.reduce_scatter_tensor(x, gathered)
        (dist.send(x, 1) if rank == 0 else dist.recv(x, 0))
        dist.barrier()
        work = dist.all_reduce(x, async_op=True)
        work.wait()
    return [(each.kind, each.bytes) for each in seen.collectives]


def test_kinds_and_bytes_are_those_of_the_calls():
    first, second = on_ranks(2, _every_kind)
    vector = 6 * FLOAT
    common = [
        ("all_reduce", vector),
        ("all_gather", vector),
        ("all_gather", vector),
        ("broadcast", 6 * 8),
        ("reduce", vector),
        ("gather", vector),
    ]
    after = [("all_to_all", 2 * vector), ("reduce_scatter", 2 * vector)]
    assert first == [*common, ("scatter", 2 * vector), *after, ("send", vector), ("all_reduce", vector)]
    assert second == [*common, ("scatter", 0), *after, ("receive", vector), ("all_reduce", vector)]


def _reducer(world):
    """A step under DDP after its buckets have settled: owners by the memory of the gradients."""
    torch.manual_seed(0)
    network = build_model("resnet8", 10, norm={"name": "bn", "process_group": dist.group.WORLD}, width=4)
    ddp = nn.parallel.DistributedDataParallel(
        network, gradient_as_bucket_view=True, bucket_cap_mb=0.01, broadcast_buffers=False
    )
    for _ in range(3):
        ddp.zero_grad()
        with Counting() as seen:
            _step(ddp, torch.randn(4, 3, 8, 8))
            total = torch.ones(7)
            seen.part = lambda: "other"
            dist.all_reduce(total)
    parameters = list(network.parameters())
    channels = [m.num_features for m in network.modules() if hasattr(m, "num_features")]
    return (
        by_owner(seen.collectives, [p.grad for p in parameters]),
        channels,
        sum(p.numel() for p in parameters),
    )


def test_each_collective_has_its_owner():
    for owners, channels, parameters in on_ranks(2, _reducer):
        gradients = owners.pop("gradients")
        assert gradients["all_reduce"]["bytes"] == FLOAT * parameters
        assert gradients["all_reduce"]["count"] > 1, "several buckets"
        assert owners == {
            "norm": {
                "all_gather": {"count": len(channels), "bytes": sum(FLOAT * (2 * c + 2) for c in channels)},
                "all_reduce": {"count": len(channels), "bytes": sum(FLOAT * 2 * c for c in channels)},
            },
            "other": {"all_reduce": {"count": 1, "bytes": 7 * FLOAT}},
        }


def test_owners_add_up_to_all():
    bucket, other = torch.ones(4), torch.ones(4)
    seen = [
        Collective("all_reduce", 16, bucket.untyped_storage().data_ptr(), "backward"),
        Collective("all_reduce", 16, other.untyped_storage().data_ptr(), "backward"),
        Collective("broadcast", 8, other.untyped_storage().data_ptr(), "optimizer"),
    ]
    found = by_owner(seen, [bucket[1:]])
    assert found == {
        "gradients": {"all_reduce": {"count": 1, "bytes": 16}},
        "norm": {"all_reduce": {"count": 1, "bytes": 16}},
        "other": {"broadcast": {"count": 1, "bytes": 8}},
    }
    assert by_owner([], []) == {}
