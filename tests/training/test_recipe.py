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

from bnbench import catalog
from bnbench.compose import compose_jobs
from bnbench.config import ScheduleConfig
from bnbench.config.optim import scheduled
from bnbench.models import build_model
from bnbench.norms import NORMS, swap_norms
from bnbench.training.callbacks import Evaluation
from bnbench.training.meter import Meter
from bnbench.training.optim import build_optimizer, parameter_groups
from bnbench.training.result import largest_stable_lr, metrics, steps_to_target
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


def test_biases_neither_decay_nor_are_rescaled_where_they_are_asked_not_to():
    model = _resnet("bn")
    groups = parameter_groups(model, 5e-4, False, decay_bias=False)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.dim() > 1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_model_without_norms_has_no_empty_group():
    (group,) = parameter_groups(nn.Linear(2, 3), 0.1, False)
    assert len(group["params"]) == 2


# Schedule


COSINE = ScheduleConfig("cosine")


def _shares(config: ScheduleConfig, warmup: int, total: int, peak: float = 0.1) -> list[float]:
    return [scheduled(config, step, warmup, total, peak) for step in range(total)]


@settings(deadline=None)
@given(warmup=st.integers(0, 60), after=st.integers(0, 200))
def test_warmup_rises_to_the_peak_and_cosine_falls_to_nothing(warmup, after):
    total = warmup + after
    shares = _shares(COSINE, warmup, total)
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
        assert scheduled(COSINE, total, warmup, total, 0.1) == pytest.approx(0, abs=1e-12)


def test_step_falls_at_30_60_and_90_of_100_epochs():
    shares = _shares(ScheduleConfig("step", (0.3, 0.6, 0.9), 0.1), warmup=5 * 7, total=100 * 7)
    falls = [step / 7 for step in range(36, 700) if shares[step] < shares[step - 1]]
    assert falls == [30, 60, 90]
    assert shares[-1] == pytest.approx(1e-3)


def test_constant_stays():
    assert set(_shares(ScheduleConfig("constant"), 0, 9)) == {1.0}


def test_range_climbs_by_one_factor_a_step():
    shares = _shares(ScheduleConfig("range", lr_end=10.0), 0, 50, peak=0.01)
    factors = [b / a for a, b in itertools.pairwise(shares)]
    assert shares[0] == 1
    assert factors == pytest.approx([1000 ** (1 / 50)] * 49)


@pytest.mark.parametrize(
    ("words", "peak"), [(["optim.lr_rule=linear"], 0.4), (["optim.lr_rule=sqrt"], 0.2 * 2**0.5), ([], 0.2)]
)
def test_the_optimizer_follows_the_schedule_in_steps(words, peak):
    words = ["optim.lr=0.2", "optim.warmup_epochs=1.5", "global_batch=128", "epochs=4", *words]
    words += ["optim.base_batch=64"] if len(words) == 5 else []
    (config,) = compose_jobs(words, multirun=False)
    optimizer, schedule = build_optimizer(_resnet("bn"), config, steps_per_epoch=10)
    rates = []
    for _ in range(40):
        rates.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert all(len(rate) == 1 for rate in rates)
    (highest,) = max(rates, key=max)
    assert highest == pytest.approx(peak)
    assert rates.index({highest}) == 14, "one and a half epochs of ten steps"
    assert max(rates[-1]) < 0.005 * highest


@pytest.mark.parametrize("decay_norm", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_each_optimizer_reads_its_settings_and_takes_a_step(name, decay_norm):
    words = [f"optim={name}", "optim.lr=0.5", f"optim.decay_norm={decay_norm}", "optim.weight_decay=0.1"]
    (config,) = compose_jobs([*words, "epochs=6"], multirun=False)
    model = _resnet("bn")
    optimizer, _ = build_optimizer(model, config, steps_per_epoch=1)
    for key in catalog.OPTIMIZERS[name].uses:
        stored = {"trust": "trust_coeff"}.get(key, key)
        assert all(group[stored] == getattr(config.optim, key) for group in optimizer.param_groups), key
    before = {key: value.clone() for key, value in model.named_parameters()}
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert all((value != before[key]).any() for key, value in model.named_parameters() if value.grad.any())


def test_lars_rescales_what_decays_and_leaves_norms_alone():
    """You et al. 2017: the step of a rescaled tensor is trust * |w| / |g + wd w|, whatever the gradient's size."""
    words = [
        "optim=lars",
        "optim.lr=1.0",
        "optim.momentum=0",
        "optim.warmup_epochs=0",
        "optim.weight_decay=1e-4",
    ]
    (config,) = compose_jobs(words, multirun=False)

    def moves(scale: float) -> dict[str, float]:
        torch.manual_seed(0)
        model = _resnet("bn")
        optimizer, _ = build_optimizer(model, config, steps_per_epoch=1)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = scale * torch.ones_like(parameter)
        optimizer.step()
        return {key: (value - before[key]).norm().item() for key, value in model.named_parameters()}

    small, large = moves(10.0), moves(1000.0)
    assert large["conv1.weight"] == pytest.approx(small["conv1.weight"], rel=1e-2)
    for unscaled in ("norm1.weight", "norm1.bias", "fc.bias"):
        assert large[unscaled] == pytest.approx(100 * small[unscaled], rel=1e-4)


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


def _epochs(errors: list[float]) -> list[Evaluation]:
    """Each series is a different function of the error, so that a mixed-up key shows."""
    return [
        Evaluation(number, number, 0.1, error + 3, error + 2, error + 1, error, 1.0, 1.0, 1.0)
        for number, error in enumerate(errors)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_final_is_the_last_epoch_then_the_median_of_the_last_five(errors):
    found = metrics(_epochs(errors), nn.Linear(2, 3), done=True)
    error = errors[-1] if len(errors) < 10 else statistics.median(errors[-5:])
    assert found["final_val_error"] == error
    assert [found[key] for key in FINAL] == [error, error + 1, error + 2, error + 3]
    assert found["params"] == 9


@pytest.mark.parametrize("length", [3, 9, 10, 25])
def test_final_is_never_the_best_epoch(length):
    errors = [50.0 - n for n in range(length)]
    errors[-2] = 1.0  # one lucky epoch among the last
    assert metrics(_epochs(errors), nn.Linear(2, 3), done=True)["final_val_error"] > 20


@pytest.mark.parametrize("done", [0, 2, 12])
def test_a_diverged_run_has_no_error(done):
    found = metrics(_epochs([10.0] * done), nn.Linear(2, 3), done=False)
    assert {found[key] for key in FINAL} == {None}


# What only some runs are asked


def test_the_target_counts_from_the_first_evaluation_that_reaches_it():
    rows = _epochs([90.0, 40.0, 60.0, 30.0])
    assert [steps_to_target(rows, target) for target in (95, 40, 39.9, 10)] == [0, 1, 3, None]


def _range(losses: list[float]) -> dict[str, object]:
    return largest_stable_lr([(n, 2.0**n, loss) for n, loss in enumerate(losses)], classes=10)


def test_a_range_ends_where_half_of_what_was_gained_is_lost():
    chance = math.log(10)
    assert _range([chance, 1.5, 1.0, 1.2, 1.6, 1.7, 0.9]) == {
        "largest_stable_lr": 2.0**4, "lr_range_exhausted": False,
    }  # fmt: skip
    assert _range([chance, 1.5, 1.0, math.inf])["largest_stable_lr"] == 4.0
    assert _range([chance, 1.5, 1.0]) == {"largest_stable_lr": 4.0, "lr_range_exhausted": True}
    # A loss that never left chance says nothing of stability; one that exploded at once had no stable rate.
    assert _range([chance, 2.4, 2.2])["largest_stable_lr"] is None
    assert _range([math.nan])["largest_stable_lr"] is None
