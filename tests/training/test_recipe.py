"""The recipe and the numbers that a run reports: groups by type, schedule, meters, `final`."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bnbench.compose import compose_jobs
from bnbench.models import build_model
from bnbench.norms import NORMS, swap_norms
from bnbench.training.callbacks import Epoch
from bnbench.training.meter import Meter
from bnbench.training.optim import build_optimizer, parameter_groups, warmup_cosine
from bnbench.training.result import metrics
from tests.ranks import on_ranks

# Parameter groups


class _Unnamed(nn.Module):
    """Norms whose names say nothing, and a convolution whose name says `bn`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn_like = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.rest = nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True))
        self.again = self.first
        self.norm_weight = nn.Parameter(torch.ones(3))


def _resnet(norm: str) -> nn.Module:
    model = build_model("resnet8", 10, width=4)
    options = {"gn": {"num_groups": 2}, "ghost": {"ghosts": 2}, "frozen": {"after": 0.5}}
    swap_norms(model, norm, **options.get(norm, {}))
    return model


MODELS = {"unnamed": _Unnamed, **{norm: lambda norm=norm: _resnet(norm) for norm in NORMS}}


@pytest.mark.parametrize("decay_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_groups_hold_each_parameter_once_and_split_by_type(name, decay_norm):
    model = MODELS[name]()
    groups = parameter_groups(model, 5e-4, decay_norm)
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    norms = {
        id(p)
        for m in model.modules()
        if "norm" in type(m).__name__.lower()
        for p in m.parameters(recurse=False)
    }
    assert undecayed == (set() if decay_norm else norms)
    assert {group["weight_decay"] for group in groups} == ({5e-4} if decay_norm else {5e-4, 0.0})


def test_a_model_without_norms_has_no_empty_group():
    (group,) = parameter_groups(nn.Linear(2, 3), 0.1, False)
    assert len(group["params"]) == 2


# Schedule


@settings(deadline=None)
@given(warmup=st.integers(0, 60), after=st.integers(0, 200))
def test_warmup_rises_to_the_peak_and_cosine_falls_to_nothing(warmup, after):
    total = warmup + after
    shares = [warmup_cosine(step, warmup, total) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
    if total:
        assert max(shares) == 1, "the peak is reached"
    # No jump: a warmup step climbs 1/warmup, a cosine falls by at most half its angle.
    limit = max(1 / warmup if warmup else 0, math.pi / (2 * after) if after else 0)
    assert all(abs(a - b) <= limit + 1e-12 for a, b in itertools.pairwise(shares))
    if after:
        assert shares[-1] <= (math.pi / (2 * after)) ** 2
        assert warmup_cosine(total, warmup, total) == pytest.approx(0, abs=1e-12)


def test_the_optimizer_follows_the_schedule_in_steps():
    words = ["optim.lr=0.2", "optim.lr_rule=linear", "optim.base_batch=64", "optim.warmup_epochs=1.5"]
    config = compose_jobs(words, multirun=False)[0].optim
    shape = {"global_batch": 128, "epochs": 4, "steps_per_epoch": 10}
    optimizer, schedule = build_optimizer(_resnet("bn"), config, **shape)
    rates = []
    for _ in range(40):
        rates.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert all(len(rate) == 1 for rate in rates)
    (peak,) = max(rates, key=max)
    assert peak == config.peak_lr(128) == 0.4
    assert rates.index({peak}) == 14, "one and a half epochs of ten steps"
    assert max(rates[-1]) < 0.005 * peak


# Meter


def _batches(sizes: list[int], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 5, generator=generator).double(), torch.randint(5, (n,), generator=generator))
        for n in sizes
    ]


def _metered(batches) -> tuple[float, float, float]:
    meter = Meter()
    for logits, labels in batches:
        meter.add(F.cross_entropy(logits, labels), logits, labels)
    totals = meter.drain()
    return totals.loss, totals.error, totals.images


def _whole(batches) -> tuple[float, float, float]:
    """By hand, over all images at once."""
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    pairs = zip(logits.tolist(), labels.tolist(), strict=True)
    wrong = sum(row.index(max(row)) != label for row, label in pairs)
    return F.cross_entropy(logits, labels).item(), 100 * wrong / len(labels), len(labels)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_uneven_batches_count_by_image(sizes):
    assert _metered(_batches(sizes)) == pytest.approx(_whole(_batches(sizes)), abs=1e-12)


def test_a_drain_starts_anew_and_parts_add_up():
    batches, meter, parts = _batches([3, 7, 2, 5]), Meter(), []
    for half in (batches[:2], batches[2:]):
        for logits, labels in half:
            meter.add(F.cross_entropy(logits, labels), logits, labels)
        parts.append(meter.drain())
    total = parts[0] + parts[1]
    assert (total.loss, total.error, total.images) == pytest.approx(_whole(batches), abs=1e-12)
    assert meter.drain().images == 0


def test_a_meter_keeps_no_graph():
    """Keeping it would hold every step's activations until the next point of the curve."""
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    meter = Meter()
    meter.add(F.cross_entropy(logits, labels), logits * 1, labels)
    assert not any(tensor.requires_grad for batch in meter._batches for tensor in batch)


SHARES = ([4, 1, 6], [2])  # uneven in images and in batches


def _metered_on_rank(world):
    return _metered(_batches(SHARES[world.place.rank], seed=world.place.rank))


def test_ranks_report_what_one_rank_would_over_all_their_images():
    want = _whole([batch for rank, sizes in enumerate(SHARES) for batch in _batches(sizes, seed=rank)])
    for got in on_ranks(2, _metered_on_rank):
        assert got == pytest.approx(want, abs=1e-12)


# Final metrics

FINAL = ("final_val_error", "final_val_loss", "train_error", "train_loss")


def _epochs(errors: list[float]) -> list[Epoch]:
    """Each series is a different function of the error, so that a mixed-up key shows."""
    return [
        Epoch(number, number, 0.1, error + 3, error + 2, error + 1, error, 1.0, 1.0, 1.0)
        for number, error in enumerate(errors)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_final_is_the_last_epoch_then_the_median_of_the_last_five(errors):
    found = metrics(_epochs(errors), nn.Linear(2, 3), "completed")
    error = errors[-1] if len(errors) < 10 else statistics.median(errors[-5:])
    assert found["final_val_error"] == error
    assert [found[key] for key in FINAL] == [error, error + 1, error + 2, error + 3]
    assert found["params"] == 9


@pytest.mark.parametrize("length", [3, 9, 10, 25])
def test_final_is_never_the_best_epoch(length):
    errors = [50.0 - n for n in range(length)]
    errors[-2] = 1.0  # one lucky epoch among the last
    assert metrics(_epochs(errors), nn.Linear(2, 3), "completed")["final_val_error"] > 20


@pytest.mark.parametrize("done", [0, 2, 12])
def test_a_diverged_run_has_no_error(done):
    found = metrics(_epochs([10.0] * done), nn.Linear(2, 3), "diverged")
    assert {found[key] for key in FINAL} == {None}
