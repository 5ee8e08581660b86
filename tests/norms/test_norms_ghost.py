"""Ghost BN: groups inside a device's batch, exactly as that many devices would have seen them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnbench.norms import build_norm, merge_running_statistics
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms


@settings(max_examples=25, deadline=None)
@given(
    ghosts=st.integers(2, 5),
    images=st.integers(1, 4),
    channels=st.integers(1, 6),
    side=st.integers(2, 5),
    momentum=st.floats(0.01, 1),
    channels_last=st.booleans(),
)
def test_each_group_is_a_batch_norm_of_its_own(ghosts, images, channels, side, momentum, channels_last):
    torch.manual_seed(0)
    x = torch.randn(ghosts * images, channels, side, side, dtype=torch.double)
    weights = torch.randn_like(x)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    ghost = build_norm("bn", channels, ghosts=ghosts, momentum=momentum).double()
    y = ghost(x)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    plain = [nn.BatchNorm2d(channels, momentum=momentum).double() for _ in range(ghosts)]
    for g, norm in enumerate(plain):
        part = x.detach()[g::ghosts].contiguous().requires_grad_()
        want = norm(part)
        (want_gradient,) = torch.autograd.grad((want * weights[g::ghosts]).sum(), part)
        torch.testing.assert_close(y[g::ghosts], want, rtol=0, atol=1e-11)
        torch.testing.assert_close(gradient[g::ghosts], want_gradient, rtol=0, atol=1e-10)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in plain]).mean(0)
        torch.testing.assert_close(getattr(ghost, name), mean, rtol=0, atol=1e-12)


def test_rank0_keeps_the_first_groups_statistics():
    x = torch.randn(6, 3, 4, 4, dtype=torch.double)
    ghost = build_norm("bn", 3, ghosts=3, statistics="rank0").double()
    first = nn.BatchNorm2d(3).double()
    ghost(x), first(x[::3])
    torch.testing.assert_close(ghost.running_var, first.running_var, rtol=0, atol=1e-14)


def test_eval_takes_any_batch_and_ignores_batch_mates():
    ghost = build_norm("bn", 3, ghosts=4).eval()
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(ghost(x)[2:3], ghost(x[2:3]))


@pytest.mark.parametrize(("shape", "message"), [((6, 3, 2, 2), "4 even groups"), ((4, 3, 1, 1), "one value")])
def test_groups_that_cannot_be_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build_norm("bn", 3, ghosts=4)(torch.randn(shape))


def test_gradcheck():
    ghost = build_norm("bn", 2, ghosts=2).double()
    x = torch.randn(4, 2, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(ghost, (x,))


def test_state_goes_to_plain_bn_and_back():
    ghost, plain = build_norm("bn", 3, ghosts=2), nn.BatchNorm2d(3)
    ghost(torch.randn(4, 3, 4, 4))
    plain.load_state_dict(ghost.state_dict())
    assert plain.num_batches_tracked == 1
    build_norm("bn", 3, ghosts=4).load_state_dict(plain.state_dict())


def _network(**options) -> nn.Module:
    torch.manual_seed(3)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1, bias=False), build_norm("bn", 4, **options), nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False), build_norm("bn", 6, **options), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 5),
    )  # fmt: skip
    return nn.Sequential(*layers).double()


def _train(model: nn.Module, rank: int, ranks: int) -> None:
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        x = torch.randn(12, 3, 6, 6, dtype=torch.double, generator=generator)
        y = torch.randint(5, (12,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
        optimizer.step()


def _one_of_many(world):
    model = _network()
    _train(DistributedDataParallel(model, broadcast_buffers=False), world.place.rank, world.place.size)
    merge_running_statistics(model, "mean")
    return model.state_dict()


@pytest.mark.parametrize("k", [2, 3])
def test_k_ghosts_on_one_rank_are_k_ranks(k):
    """After three optimizer steps: weights and merged running statistics."""
    ghost = _network(ghosts=k)
    _train(ghost, 0, 1)
    for state in on_ranks(k, _one_of_many):
        for name, tensor in ghost.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-10, msg=name)
