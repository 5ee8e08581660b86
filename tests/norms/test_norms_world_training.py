"""The NBS ladder: every route to one normalization batch size is one training, to the last digits of fp64.

Ghosts on one rank, devices, groups of ranks: whose statistics an image shares depends on NBS alone.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnbench.launch import Place
from bnbench.norms import WSConv2d, build_norm, freeze_statistics, merge_running_statistics
from bnbench.span import span_of
from bnbench.training.world import World
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms
BATCH, STEPS = 24, 3
LADDER = (4, 6, 8, 12, 24)
# A schedule of renormalization that is BN, then limited, then at its bounds within the three steps.
RENORM = {"r_max": 1.5, "d_max": 0.5, "warmup": 0, "r_end": 2, "d_end": 2}
KINDS = {
    "bn": {"momentum": 0.3},
    "ws_bn": {"momentum": 0.3},
    "brn": {"momentum": 0.3, **RENORM},
    "frozen": {"momentum": 0.3, "after": 0.5},
    "evonorm_b0": {"momentum": 0.3},
}


def _network(kind: str, **options) -> nn.Module:
    """Two convolutions with norms and a skip, in fp64."""
    torch.manual_seed(3)
    includes_activation = kind.startswith(("evonorm", "frn"))
    options = {**KINDS.get(kind, {}), **options}
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 6)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [
            WSConv2d.of(conv) if kind.startswith("ws_") else conv,
            build_norm(kind, outputs, **options),
            nn.Identity() if includes_activation else nn.ReLU(),
        ]
    network = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 5)).double()
    with torch.no_grad():  # gammas and betas that tell channels apart
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) - 0.3)
    return network


def _train(
    model: nn.Module, kind: str, shard: slice, merge: str, every_step: bool, steps: int = STEPS
) -> dict:
    """SGD on this rank's `shard` of each global batch; weights, statistics and the last gradients."""
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(steps):
        x = torch.randn(BATCH, 3, 6, 6, dtype=torch.double, generator=generator) * 2 + 1
        y = torch.randint(5, (BATCH,), generator=generator)
        if every_step:  # what brn reads
            merge_running_statistics(model, merge)
        if kind == "frozen" and step == steps // 2 + 1:
            merge_running_statistics(model, merge)
            freeze_statistics(model)
        optimizer.zero_grad()
        F.cross_entropy(model(x[shard]), y[shard]).backward()
        optimizer.step()
    merge_running_statistics(model, merge)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {
        **inner.state_dict(),
        **{f"gradient of {name}": p.grad for name, p in inner.named_parameters()},
    }


def _climb(world: World | None, devices: int | None, every_step: bool, merge: str = "mean") -> dict:
    """Every rung of the ladder that a world has, for every kind."""
    place = world.place if world else Place(0, 1, 0, 1)
    if world and devices and devices < place.size:  # make-believe nodes
        world = World(
            Place(place.rank, place.size, place.rank % devices, devices), world.device, world.backend
        )
    results = {}
    for nbs in LADDER:
        each = BATCH // place.size
        if each % nbs and (nbs % each or place.size % (nbs // each)):
            continue
        span = span_of(nbs, each, place.size, devices)
        # As plain DDP and Hoffer's first group: only where groups are ghosts or devices.
        if merge == "rank0" and span.ranks > 1:
            continue
        options: dict = {"ghosts": span.ghosts} if span.ghosts > 1 else {}
        if world and span.ranks > 1:
            options["process_group"] = world.group(span.ranks)
        for kind in KINDS:
            if merge == "rank0" and kind == "brn":
                continue  # it has no such option: what it reads is the mean
            given = {**options, "statistics": merge} if kind != "brn" else options
            model = _network(kind, **given)
            if world:
                model = DistributedDataParallel(model, broadcast_buffers=False)
            shard = slice(span.residue(place.rank, place.size), None, place.size)
            results[kind, nbs, span.kind] = _train(model, kind, shard, merge, every_step or kind == "brn")
    return results


def _assert_same(got: dict, want: dict, what: object) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        scale = max(1.0, tensor.abs().max().item())
        error = (got[name] - tensor).abs().max().item() if tensor.numel() else 0
        assert error < 1e-12 * scale, (what, name, error)


@pytest.fixture(scope="module")
def one_rank() -> dict:
    """By kind and NBS: what one rank with ghosts makes of three steps."""
    return {(kind, nbs): result for (kind, nbs, _), result in _climb(None, None, False).items()}


@pytest.mark.parametrize(
    ("ranks", "devices", "spans"),
    [
        (2, 2, {4: "ghost", 6: "ghost", 12: "device", 24: "world"}),
        (3, 3, {4: "ghost", 8: "device", 24: "world"}),
        (4, 4, {6: "device", 12: "group", 24: "world"}),
        (4, 2, {6: "device", 12: "node", 24: "world"}),
    ],
)
def test_every_route_to_one_nbs_is_one_training(one_rank, ranks, devices, spans):
    """Gradients, weights and merged running statistics after three steps, on every rank."""
    for results in on_ranks(ranks, _climb, devices, devices == 2):
        assert {(nbs, span) for _, nbs, span in results} == set(spans.items())
        assert {kind for kind, _, _ in results} == set(KINDS)
        for (kind, nbs, span), result in results.items():
            _assert_same(result, one_rank[kind, nbs], (kind, nbs, span, ranks))


@pytest.mark.parametrize("ranks", [2, 4])
def test_rank0_policy_agrees_on_ghosts_and_devices(ranks):
    """The first group's statistics, whether it is rank 0 or the first ghost of it."""
    alone = {(kind, nbs): r for (kind, nbs, _), r in _climb(None, None, False, "rank0").items()}
    for results in on_ranks(ranks, _climb, ranks, False, "rank0"):
        assert results
        for (kind, nbs, span), result in results.items():
            _assert_same(result, alone[kind, nbs], (kind, nbs, span))


def test_the_ladder_tells_its_rungs_apart(one_rank):
    """So that agreement above is not the agreement of layers that ignore NBS."""
    for kind in KINDS:
        for nbs in LADDER[:-1]:
            name = "gradient of 0.weight"
            difference = (one_rank[kind, nbs][name] - one_rank[kind, 24][name]).abs().max()
            assert difference > 1e-3, (kind, nbs)


def _device_span(world, kind):
    """A layer that was given no process group, in a world of several ranks."""
    generator = torch.Generator().manual_seed(world.place.rank)
    x = torch.randn(6, 3, 4, 4, generator=generator) * (1 + world.place.rank)
    norms = [build_norm(kind, 3, **KINDS[kind]), build_norm(kind, 3, **KINDS[kind], ghosts=2)]
    outputs = [norm(x) for norm in norms]
    (outputs[0].sum() + outputs[1].sum()).backward()
    return x, [(y.detach(), norm.running_var) for y, norm in zip(outputs, norms, strict=True)]


@pytest.mark.parametrize("kind", ["bn", "brn", "evonorm_b0"])
def test_without_a_group_nothing_crosses_ranks(kind):
    for x, results in on_ranks(2, _device_span, kind):
        for (y, running_var), ghosts in zip(results, (1, 2), strict=True):
            alone = build_norm(kind, 3, **KINDS[kind], ghosts=ghosts)
            torch.testing.assert_close(y, alone(x), rtol=0, atol=1e-6)
            torch.testing.assert_close(running_var, alone.running_var, rtol=0, atol=1e-6)


def _merging(world):
    """Each kind's statistics: merged at every step, merged once at the end, twice, by rank 0's, not at all."""
    rank = world.place.rank
    results = {}
    for kind, options in {**KINDS, "brn": {"momentum": 0.3}, "frozen at once": {"after": 0}}.items():
        ways = {}
        for way in ("never", "every step", "at the end", "twice", "rank0"):
            norm = build_norm(kind.split()[0], 3, **options).double()
            model = nn.Sequential(norm)
            generator = torch.Generator().manual_seed(rank)
            for step in range(3):
                x = torch.randn(2 + rank, 3, 4, 4, dtype=torch.double, generator=generator) * (step + 1)
                if kind == "frozen at once":  # statistics that someone loaded
                    norm.running_mean += x.mean((0, 2, 3))
                    norm.running_var += x.var((0, 2, 3))
                model(x)
                if way == "every step":
                    merge_running_statistics(model, "mean")
            if way != "never":
                merge_running_statistics(
                    DistributedDataParallel(model, broadcast_buffers=False)
                    if list(model.parameters())
                    else model,
                    "rank0" if way == "rank0" else "mean",
                )
            if way == "twice":
                merge_running_statistics(model, "mean")
                merge_running_statistics(model, "rank0")
            ways[way] = {
                name: tensor for name, tensor in model.state_dict().items() if name.startswith("0.running")
            }
        results[kind] = ways
    return results


@pytest.mark.parametrize("ranks", [2, 3])
def test_merging_is_linear_and_idempotent(ranks):
    by_rank = on_ranks(ranks, _merging)
    for kind, ways in by_rank[0].items():
        assert set(ways["never"]) == {
            "0.running_var",
            *(["0.running_mean"] if kind != "evonorm_b0" else []),
        }
        for name in ways["never"]:
            own = torch.stack([results[kind]["never"][name] for results in by_rank])
            assert (own[0] - own[1]).abs().min() > 1e-3, kind  # the ranks saw different images
            for results in by_rank:
                merged = results[kind]
                for way in ("every step", "at the end", "twice"):
                    torch.testing.assert_close(merged[way][name], own.mean(0), rtol=1e-14, atol=1e-14)
                assert torch.equal(merged["rank0"][name], own[0])


def _wrapped(world, builds):
    """Each layer behind a convolution, in DDP with its defaults: three steps, all parameters used, ranks equal."""
    for kind, options in builds:
        torch.manual_seed(world.place.rank)
        norm = build_norm(kind, 4, **options)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), norm)
        if kind == "vbn":
            from bnbench.norms import VirtualBatchNet

            network = VirtualBatchNet(network, torch.randn(3, 3, 5, 5))
        model = DistributedDataParallel(network, find_unused_parameters=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 5, 5)).square().mean().backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, (kind, options, name)
                assert math.isfinite(parameter.grad.sum()), (kind, options, name)
            optimizer.step()
        flat = torch.cat([p.detach().view(-1) for p in network.parameters()])
        leaders = flat.clone()
        dist.broadcast(leaders, src=0)
        assert torch.equal(flat, leaders), (kind, options)
    return True


def test_ddp_wraps_every_kind():
    """With its defaults, buffers broadcast too: no parameter is left without a gradient."""
    from bnbench.norms import NORMS

    options: dict[str, list[dict]] = {
        "ghost": [{"ghosts": 2}],
        "bn": [{}, {"ghosts": 2}],
        "frozen": [{}, {"after": 0.5}],
        "frn": [{}, {"learn_eps": True}, {"act": False}, {"act": False, "learn_eps": True}],
        "gn": [{"num_groups": 2}],
        "ws_gn": [{"num_groups": 2}],
        "evonorm_s0": [{"num_groups": 2}, {"num_groups": 2, "act": False}],
        "evonorm_b0": [{}, {"act": False}, {"ghosts": 2}],
        "none": [{}, {"affine": False}],
    }
    builds = [(kind, given) for kind in NORMS for given in options.get(kind, [{}])]
    assert on_ranks(2, _wrapped, builds) == [True, True]
