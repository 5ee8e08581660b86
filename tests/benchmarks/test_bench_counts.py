"""Saved bytes and collectives are right for layers whose answers are known."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bnbench.benchmarks.counts import collectives, saved_bytes
from bnbench.benchmarks.norms import Settings
from bnbench.benchmarks.ranks import measure_as_rank
from bnbench.benchmarks.timing import Step
from tests.ranks import on_ranks

SHAPE = (4, 8, 6, 6)
BYTES = 4 * 8 * 6 * 6 * 4


class Doubled(nn.Module):
    """x + x by way of views of one storage: saves x three times, and one storage."""

    def forward(self, x):
        return x.view(-1).view(SHAPE) * x.permute(1, 0, 2, 3).permute(1, 0, 2, 3) * 1.0 + x.square()


class HalfOfMore(nn.Module):
    """A slice keeps its whole storage alive."""

    def forward(self, x):
        return torch.cat([x, x])[:4].exp().detach() * torch.cat([x, x])[:4]


def a_step(layer):
    x = torch.randn(SHAPE, requires_grad=True)
    return Step(layer, x, (torch.ones(SHAPE),))


@pytest.mark.parametrize(
    ("layer", "inputs", "of_input", "of_output"),
    [
        (nn.Identity(), 0, 0, 0),
        (nn.ReLU(), 1, 0, 1),  # keeps its output
        (nn.SiLU(), 1, 1, 0),
        (nn.Sequential(nn.SiLU(), nn.ReLU()), 2, 1, 1),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), 2, 0, 1),
        (Doubled(), 1, 1, 0),
        (HalfOfMore(), 1, 0, 0),
    ],
)
def test_saved_storages(layer, inputs, of_input, of_output):
    saved = saved_bytes(a_step(layer))
    assert saved == {"all": inputs * BYTES, "input": of_input * BYTES, "output": of_output * BYTES}


def test_parameters_and_buffers_are_not_saved_but_statistics_are():
    channels = SHAPE[1]
    saved = saved_bytes(a_step(nn.BatchNorm2d(channels)))
    assert saved == {"all": BYTES + 2 * channels * 4, "input": BYTES, "output": 0}  # mean and 1 / std


class Talker(nn.Module):
    """Two collectives forward; backward one, and a barrier, which is none."""

    def forward(self, x):
        total = x.detach().sum()
        dist.all_reduce(total)
        dist.broadcast(total, src=0)
        y = x * 2
        y.register_hook(lambda grad: (dist.barrier(), dist.all_reduce(grad.sum()), None)[-1])
        return y


def _talk(world):
    return collectives(a_step(Talker())), collectives(a_step(nn.BatchNorm2d(SHAPE[1])))


def test_collectives_are_counted_on_real_ranks():
    for talker, local in on_ranks(2, _talk):
        assert talker == (["all_reduce", "broadcast"], ["all_reduce"])
        assert local == ([], [])


def _kinds_on_rank(world):
    return measure_as_rank(Settings(shape=SHAPE, rounds=1))


def test_what_spans_ranks_makes_one_collective_each_way():
    found, _ = on_ranks(2, _kinds_on_rank)
    counts = {name: tuple(map(len, names)) for name, names in found["collectives"].items()}
    spanning = {"bn", "syncbn", "brn", "evonorm_b0", "ws_bn + 3x3 filters"}
    assert {name for name, each in counts.items() if each == (1, 1)} == spanning
    assert {each for name, each in counts.items() if name not in spanning} == {(0, 0)}
    assert {"bn", "syncbn", "brn", "evonorm_b0"} <= set(found["rows"])
    assert found["size"] == 2
