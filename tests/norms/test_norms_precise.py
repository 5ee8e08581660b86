"""PreciseBN: the statistics of everything that reached a layer, on every rank alike, and nothing else touched."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bnbench.norms import (
    FrozenBatchNorm2d,
    build_norm,
    freeze_statistics,
    precise_statistics,
    running_statistics,
    tracking_norms,
)
from tests.ranks import WarmWorld

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
KINDS = {
    "bn": {},
    "ghost": {"ghosts": 2},
    "brn": {"r_max": 3.0, "d_max": 5.0, "warmup": 0, "r_end": 0, "d_end": 0, "momentum": 0.5},
    "evonorm_b0": {"ghosts": 2},
}


def _net(kind: str, dropout: float = 0.0, **more) -> nn.Sequential:
    torch.manual_seed(1)
    norms = [build_norm(kind, channels, **(KINDS[kind] | more)) for channels in (4, 6)]
    layers = [nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(4, 6, 3), norms[1]]
    return nn.Sequential(*layers).double()


def _images(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 9, 9)
    return [3 + 2 * torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in sizes]


def _inputs(net: nn.Sequential, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What reaches each norm in training mode, of all batches together; each batch finds the network as it is."""
    found: dict[str, list[torch.Tensor]] = {"1": [], "5": []}
    for images in batches:
        fresh = copy.deepcopy(net).train()
        for path, inputs in found.items():
            fresh[int(path)].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            fresh(images)
    return {path: torch.cat(inputs) for path, inputs in found.items()}


def _assert_statistics(net: nn.Sequential, inputs: dict[str, torch.Tensor]) -> None:
    for path, x in inputs.items():
        var, mean = torch.var_mean(x, (0, 2, 3))
        torch.testing.assert_close(net[int(path)].running_var, var, **CLOSE)
        if hasattr(net[int(path)], "running_mean"):
            torch.testing.assert_close(net[int(path)].running_mean, mean, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_all_batches_together(kind):
    net, batches = _net(kind), _images(4, 2, 6)
    precise_statistics(net, batches)
    _assert_statistics(net, _inputs(net, batches) if kind != "brn" else _inputs(_net(kind), batches))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_batches_is_of_no_effect(kind):
    one, other, batches = _net(kind), _net(kind), _images(4, 2, 6)
    precise_statistics(one, batches)
    precise_statistics(other, batches[::-1])
    for mine, its in zip(running_statistics(one).values(), running_statistics(other).values(), strict=True):
        torch.testing.assert_close(mine, its, **CLOSE)


class _Counting(nn.Module):
    """A user's own layer, which keeps a number that is no buffer and draws where torch draws."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_nothing_else_changes():
    net = nn.Sequential(*_net("brn", dropout=0.5), _Counting())
    net[1].eval()
    before, drawn = copy.deepcopy(net), torch.get_rng_state()
    precise_statistics(net, _images(4, 4))
    assert torch.equal(drawn, torch.get_rng_state())
    assert net[-1].calls == 0
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    moving = running_statistics(net)
    for (path, mine), (_, old) in zip(net.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(mine, old) == (path not in moving), path
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_statistics_that_are_fixed_or_frozen_stay():
    net = nn.Sequential(
        build_norm("bn", 3), FrozenBatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)
    )
    freeze_statistics(net)
    net.append(build_norm("bn", 3)).double()
    assert list(tracking_norms(net)) == ["3"]
    assert list(tracking_norms(net, frozen=True)) == ["0", "3"]
    before = copy.deepcopy(net.state_dict())
    precise_statistics(net, _images(4))
    moved = {
        path.split(".")[0] for path, value in net.state_dict().items() if not torch.equal(value, before[path])
    }
    assert moved == {"3"}
    precise_statistics(nn.Conv2d(3, 4, 1), [])  # nothing to measure, and so no batch needed


def test_without_weights_that_move_the_average_comes_to_the_same():
    """One batch over and over at learning rate 0: the average has its variance, but for Bessel's n."""
    net, (images,) = _net("bn", momentum=1.0), _images(4)
    net.train()(images)
    average = {path: value.clone() for path, value in running_statistics(net).items()}
    precise_statistics(net, [images] * 5)
    for path, value in running_statistics(net).items():
        n = 4 * (7 * 7 if path.startswith("1") else 5 * 5)
        factor = 1.0 if path.endswith("mean") else (n - 1) / n * (5 * n) / (5 * n - 1)
        torch.testing.assert_close(value, factor * average[path], **CLOSE)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match="no batch has reached any norm"):
        precise_statistics(_net("bn"), [])

    class Odd(nn.Module):
        """Running statistics of something other than its input's channels."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_var", torch.ones(5))

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match=r"Odd at 0 .* of 5 channels and an input of \(2, 3, 9, 9\)"):
        precise_statistics(nn.Sequential(Odd()), _images(2))


# Over ranks

SHARES = {"uneven": ((4, 2, 6), (2,)), "none on one": ((4, 2), ()), "even": ((4, 4), (4, 4))}


@pytest.fixture(scope="module")
def two():
    with WarmWorld(2) as world:
        yield world


def _on_rank(world, kind: str, shares):
    """The precise statistics of this rank, and the inputs of the norms of its own batches."""
    net = _net(kind) if kind != "syncbn" else _sync()
    batches = _images(*shares[world.place.rank], seed=world.place.rank)
    precise_statistics(net, batches)
    return running_statistics(net), _inputs(net, batches) if batches else None


def _sync() -> nn.Sequential:
    net = _net("bn")
    for index in (1, 5):
        net[index] = build_norm("bn", net[index].num_features, process_group=dist.group.WORLD).double()
    return net


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("kind", ["bn", "ghost"])
def test_ranks_end_with_those_of_all_their_batches(two, kind, shares):
    (one, inputs), (other, others) = two.call(_on_rank, kind, shares)
    for path, value in one.items():
        assert torch.equal(value, other[path]), path
    net = _net(kind)
    net.load_state_dict(one, strict=False)
    everything = {path: torch.cat([x, others[path]]) if others else x for path, x in inputs.items()}
    _assert_statistics(net, everything)


def test_what_spans_ranks_spans_them_here_too(two):
    """Two ranks of 4 + 4 images with one span are one rank of 8 + 8."""
    (one, _), (other, _) = two.call(_on_rank, "syncbn", SHARES["even"])
    alone = _net("bn")
    precise_statistics(
        alone, [torch.cat(pair) for pair in zip(*(_images(4, 4, seed=s) for s in (0, 1)), strict=True)]
    )
    for path, value in running_statistics(alone).items():
        torch.testing.assert_close(one[path], value, **CLOSE)
        assert torch.equal(one[path], other[path])
        assert math.isfinite(value.sum())
