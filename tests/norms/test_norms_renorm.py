"""Batch Renormalization: BN at one end, frozen BN at the other, and the schedule between them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bnbench.norms import BatchRenorm2d, build_norm, freeze_statistics
from tests.norms.variants import INPUTS, assert_close, moments, randomized

pytestmark = pytest.mark.norms
few = settings(max_examples=15, deadline=None, derandomize=True)
OPEN = {"warmup": 0, "r_end": 0, "d_end": 0, "r_max": 1e6, "d_max": 1e6}  # no bound that data would meet


def run(norm, x, dy):
    leaf = x.detach().requires_grad_()
    y = norm(leaf)
    return y, *torch.autograd.grad(y, [leaf, norm.weight, norm.bias], dy)


@few
@given(given_input=INPUTS, ghosts=st.sampled_from([1, 2]), how=st.sampled_from(["warmup", "bounds"]))
def test_with_r_1_and_d_0_it_is_bn(given_input, ghosts, how):
    """In the warmup, and with bounds (1, 0) at any step."""
    x, dy = given_input.tensors()
    c = given_input.channels
    options = {"warmup": 100} if how == "warmup" else {"r_max": 1, "d_max": 0, "warmup": 0}
    options |= {"r_end": 200, "d_end": 200}
    brn = randomized(build_norm("brn", c, ghosts=ghosts, momentum=0.1, **options), given_input.seed).double()
    bn = randomized(build_norm("bn", c, ghosts=ghosts), given_input.seed).double()
    for _ in range(2):
        for got, want in zip(run(brn, x, dy), run(bn, x, dy), strict=True):
            assert_close(got, want, 1e-11)
        for name, buffer in bn.named_buffers():
            assert_close(brn.get_buffer(name), buffer, 1e-13, name)
    assert_close(brn.eval()(x), bn.eval()(x), 1e-13)


@few
@given(given_input=INPUTS, ghosts=st.sampled_from([1, 2]))
def test_unclipped_it_is_frozen_bn_whose_gradient_is_r_times_bns(given_input, ghosts):
    """With the statistics from before this step's update: they would be 0.5 of the batch's own after it."""
    x, dy = given_input.tensors()
    c = given_input.channels
    brn = randomized(build_norm("brn", c, ghosts=ghosts, momentum=0.5, **OPEN), given_input.seed).double()
    before = copy.deepcopy(brn).eval()
    bn = randomized(build_norm("bn", c, ghosts=ghosts), given_input.seed).double()
    running_std = (brn.running_var + brn.eps).sqrt()
    y, dx, *_ = run(brn, x, dy)
    _, dx_bn, *_ = run(bn, x, dy)
    assert_close(y, before(x), 1e-11)
    assert not torch.allclose(brn.running_var, before.running_var)
    for g in range(ghosts):
        std = (x[g::ghosts].var((0, 2, 3), correction=0) + brn.eps).sqrt()
        r = (std / running_std)[:, None, None]
        assert_close(dx[g::ghosts], r * dx_bn[g::ghosts], 1e-11)


def test_r_and_d_are_clipped_each_by_its_bound():
    """Statistics far off on both sides, so that every channel meets a bound."""
    norm = BatchRenorm2d(4, warmup=0, r_end=0, d_end=0, r_max=2.0, d_max=0.5, eps=1e-15).double()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([10.0, -10.0, 10.0, -10.0]))
        norm.running_var.copy_(torch.tensor([1e-4, 1e-4, 1e4, 1e4]))
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    x = torch.randn(6, 4, 3, 3, dtype=torch.double)
    mean, var = moments(x, (0, 2, 3))
    r = torch.tensor([2.0, 2.0, 0.5, 0.5])
    d = (mean.flatten() - norm.running_mean) / torch.tensor([0.01, 0.01, 100, 100])
    assert d[:2].abs().min() > 0.5 > d[2:].abs().max() > 0.05
    d = d.clamp(-0.5, 0.5)
    want = norm.weight[:, None, None] * ((x - mean) / var.sqrt() * r[:, None, None] + d[:, None, None])
    assert_close(norm(x), want, 1e-10)


def test_gradcheck_where_r_and_d_are_at_their_bounds():
    """Constant there, so that the numeric derivative knows them as constants too."""
    norm = BatchRenorm2d(2, ghosts=2, warmup=0, r_end=0, d_end=0, r_max=2.0, d_max=0.5).double()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([10.0, -200.0]))
        norm.running_var.copy_(torch.tensor([1e-4, 1e2]))
    norm.momentum = 0.0  # each of gradcheck's calls sees the same statistics
    x = torch.randn(4, 2, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def bounds_at(norm, step):
    norm.num_batches_tracked.fill_(step)
    return tuple(bound.item() for bound in norm.bounds())


def test_the_papers_schedule():
    """(1, 0) for 5,000 steps; r to 3 by 40,000, d to 5 by 25,000; exactly that at the corners and after."""
    norm = build_norm("brn", 2)
    want = {
        0: (1, 0), 4999: (1, 0), 5000: (1, 0), 15000: (1 + 2 * 10 / 35, 2.5), 25000: (1 + 2 * 20 / 35, 5),
        22500: (2, 4.375), 40000: (3, 5), 40001: (3, 5), 10**7: (3, 5),
    }  # fmt: skip
    for step, (r, d) in want.items():
        assert bounds_at(norm, step) == pytest.approx((r, d), rel=1e-6)
    for step in (0, 5000, 22500, 25000, 40000, 10**7):
        got, exact = bounds_at(norm, step), want[step]
        assert (step == 25000 or got[0] == exact[0]) and got[1] == exact[1]
    assert bounds_at(norm, 5001)[0] > 1 and bounds_at(norm, 5001)[1] > 0


@few
@given(
    warmup=st.integers(0, 500).map(lambda n: n / 1000),
    r_more=st.integers(0, 500).map(lambda n: n / 1000),
    d_more=st.integers(0, 500).map(lambda n: n / 1000),
    total=st.integers(1, 5000),
    r_max=st.floats(1, 10),
    d_max=st.floats(0, 10),
)
def test_a_schedule_in_fractions_is_one_in_steps(warmup, r_more, d_more, total, r_max, d_max):
    ends = {"warmup": warmup, "r_end": warmup + r_more, "d_end": warmup + d_more}
    bounds = {"r_max": r_max, "d_max": d_max}
    fractions = build_norm("brn", 2, total_steps=total, **ends, **bounds)
    steps = build_norm("brn", 2, **{k: v * total for k, v in ends.items()}, **bounds)
    last = (1.0, 0.0)
    for step in range(0, total + 2, max(1, total // 17)):
        now = bounds_at(fractions, step)
        assert now == bounds_at(steps, step)
        assert all(a <= b for a, b in zip(last, now, strict=True))  # they only grow
        if step < warmup * total:
            assert now == (1, 0)
        for got, most, least, end in zip(now, (r_max, d_max), (1, 0), (r_more, d_more), strict=True):
            share = 1.0 if step >= (warmup + end) * total else None
            if share and math.ceil((warmup + end) * total) < step:
                assert got == pytest.approx(most, rel=1e-6)
            assert least <= got <= most * (1 + 1e-6)
        last = now


def test_a_resumed_layer_goes_on_in_its_schedule():
    """The steps are in the state_dict; as long as it trains, so are r and d."""
    options = {"warmup": 2, "r_end": 6, "d_end": 5, "momentum": 0.3}
    batches = torch.randn(8, 4, 3, 3, 3, dtype=torch.double) * 3 + 1
    whole = build_norm("brn", 3, **options).double()
    outputs = [whole(x) for x in batches]
    first = build_norm("brn", 3, **options).double()
    for x in batches[:4]:
        first(x)
    second = build_norm("brn", 3, **options).double()
    second.load_state_dict(first.state_dict())
    assert second.num_batches_tracked == 4
    for x, want in zip(batches[4:], outputs[4:], strict=True):
        assert torch.equal(second(x), want)


def test_eval_and_frozen_steps_count_for_nothing():
    norm = build_norm("brn", 3)
    x = torch.randn(4, 3, 3, 3)
    norm.eval()(x)
    norm.train()
    freeze_statistics(norm)
    norm(x)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_the_running_variance_is_unbiased_and_each_ghosts_own_bounds_hold():
    """Unlike the paper's std; the second group's statistics do not touch the first's r and d."""
    norm = build_norm("brn", 3, ghosts=2, momentum=1.0, **OPEN).double()
    x = torch.randn(4, 3, 2, 2, dtype=torch.double)
    y = norm(x)
    x2 = x.clone()
    x2[1::2] *= 7
    other = build_norm("brn", 3, ghosts=2, momentum=1.0, **OPEN).double()
    assert_close(other(x2)[::2], y[::2], 1e-13)
    want = torch.stack([x[g::2].var((0, 2, 3)) for g in range(2)]).mean(0)
    assert_close(norm.running_var, want, 1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max=0.5 must be at least 1"),
        ({"d_max": -1}, "d_max=-1 at least 0"),
        ({"warmup": -1}, "warmup at least 0"),
        ({"warmup": 9, "r_end": 8, "d_end": 10}, "both ends must be at least warmup"),
        ({"warmup": 9, "r_end": 10, "d_end": 8}, "both ends must be at least warmup"),
        ({"total_steps": 100}, "must be fractions, at most 1"),
        ({"total_steps": 100, "warmup": 0, "r_end": 0.5, "d_end": 1.5}, "must be fractions, at most 1"),
        ({"ghosts": 0}, "ghosts=0 must be at least 1"),
        ({"ghosts": 2, "process_group": object()}, "exclude each other"),
    ],
)
def test_schedules_and_spans_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        build_norm("brn", 4, **options)


def test_in_a_network_it_trains_and_keeps_its_gamma():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), build_norm("brn", 8, warmup=3, r_end=10, d_end=10, momentum=0.1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip
    x, target = torch.randn(12, 3, 6, 6), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    model.eval()
    assert F.cross_entropy(model(x), target) < 0.5  # the running statistics are those that it trained with
