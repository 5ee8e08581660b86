"""Made-up evidence for every claim: the verdict follows the records, whichever way they point."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnbench import catalog
from bnbench.analysis.claims import ClaimResult, judge
from bnbench.analysis.claims.measures import MEASURES
from bnbench.analysis.claims.table import TABLE
from bnbench.analysis.collect import collect
from bnbench.analysis.paired import holm, paired
from bnbench.records import Record, Status
from tests.records_factory import make_record, write

SEEDS = 5
SUPPORTED, AGAINST, OPEN, MISSING = (
    "supported",
    "not supported",
    "not distinguishable",
    "not enough runs",
)
NONE: dict[str, Any] = {"norm": "none", "nbs": None, "norm_settings": {"affine": True, "init": "none"}}

# Per claim: how far the records lean towards it, in standard deviations of their noise, to its records.
Evidence = Callable[[float, int], list[Record]]


def noise(*place: Any) -> float:
    """The same noise for the same place: between -1 and 1, of no lean."""
    return random.Random(repr(place)).uniform(-1, 1)


def grid(
    claim: str, cells: list[tuple[dict[str, Any], Callable[[int], dict[str, float]]]], seeds: int
) -> list[Record]:
    records = []
    for settings, numbers in cells:
        for seed in range(seeds):
            records.append(make_record(claim=claim, seed=seed, metrics=numbers(seed), **settings))
    return records


def error(level: float, *place: Any) -> Callable[[int], dict[str, float]]:
    return lambda seed: {"final_val_error": level + noise(seed, *place)}


def convergence(lean: float, seeds: int) -> list[Record]:
    def steps(level: float, who: str) -> Callable[[int], dict[str, float]]:
        return lambda seed: {"steps_to_target": level * math.exp(0.1 * noise(seed, who))}

    target = {"target_error": 30.0}
    bn = (target, steps(20 * math.exp(-0.1 * lean), "bn"))
    return grid("convergence", [bn, ({**NONE, **target}, steps(20, "none"))], seeds)


def learning_rate(lean: float, seeds: int) -> list[Record]:
    def rate(level: float, who: str) -> Callable[[int], dict[str, float]]:
        return lambda seed: {"largest_stable_lr": level * math.exp(0.1 * noise(seed, who))}

    test: dict[str, Any] = {"identity_of": {"recipe.schedule": {"name": "range", "lr_end": 100.0}}}
    cells = [(test, rate(math.exp(0.1 * lean), "bn")), ({**NONE, **test}, rate(1.0, "none"))]
    return grid("learning_rate", cells, seeds)


def accuracy(lean: float, seeds: int) -> list[Record]:
    cells = []
    for lr in (0.05, 0.1, 0.2):
        worse = 10 * abs(math.log2(lr / 0.1))
        cells.append(({"lr": lr}, error(20 - lean + worse, "bn", lr)))
        cells.append(({**NONE, "lr": lr}, error(20 + worse, "none", lr)))
    return grid("accuracy", cells, seeds)


def covariate_shift(lean: float, seeds: int) -> list[Record]:
    def shift(level: float, who: str) -> Callable[[int], dict[str, float]]:
        names = ("input_drift", "gradient_change", "loss_range")
        return lambda seed: {key: level * math.exp(0.1 * noise(seed, who, key)) for key in names}

    cells = [({}, shift(math.exp(-0.1 * lean), "bn")), (NONE, shift(1.0, "none"))]
    return grid("covariate_shift", cells, seeds)


def regularization(lean: float, seeds: int) -> list[Record]:
    def gap(level: float, *place: Any) -> Callable[[int], dict[str, float]]:
        return lambda seed: {
            "val_error_running": 30 + level + noise(seed, *place),
            "train_eval_error": 30.0,
        }

    cells = []
    for dropout in (0.0, 0.3):
        more: dict[str, Any] = {"identity_of": {"model.dropout": dropout}}
        cells += [
            ({"nbs": nbs, **more}, gap(level, nbs, dropout)) for nbs, level in ((2, -lean), (16, 0), (64, 0))
        ]
    return grid("regularization", cells, seeds)


def depth(lean: float, seeds: int) -> list[Record]:
    cells = []
    for residual in (True, False):
        for model in ("resnet8", "resnet56"):
            more: dict[str, Any] = {"model": model, "identity_of": {"model.residual": residual}}
            towards = lean if model == "resnet56" else -lean  # the shallow net is context, not evidence
            cells.append((more, error(40 - towards, "bn", model, residual)))
            cells.append(({**NONE, **more}, error(40, "none", model, residual)))
    return grid("depth", cells, seeds)


def small_batch(lean: float, seeds: int) -> list[Record]:
    world: dict[str, Any] = {"world_size": 2}
    answers: list[dict[str, Any]] = [{"nbs": 32}, {"nbs": 64}, {"norm": "brn", "nbs": 2}]
    answers += [{"norm": "brn", "nbs": 64}, {"norm": "vbn", "nbs": None}, {"norm": "gn", "nbs": None}]
    cells = [({**world, "nbs": 2}, error(20, "small"))]
    cells += [({**world, **answer}, error(20 - lean, repr(answer))) for answer in answers]
    return grid("small_batch", cells, seeds)


def placement(lean: float, seeds: int) -> list[Record]:
    cells = [
        ({"norm_settings": {"placement": where}}, error(20 + level, where))
        for where, level in (("before", -lean), ("after", 0.0))
    ]
    return grid("placement", cells, seeds)


def inference(lean: float, seeds: int) -> list[Record]:
    def statistics(gap: float, nbs: int) -> Callable[[int], dict[str, float]]:
        return lambda seed: {
            "val_error_running": 20 + gap + noise(seed, nbs, "running"),
            "val_error_batch": 20 + noise(seed, nbs, "batch"),
            "val_error_precise": 20 + noise(seed, nbs, "precise"),
        }

    return grid("inference", [({"nbs": 2}, statistics(lean, 2)), ({"nbs": 64}, statistics(0.0, 64))], seeds)


EVIDENCE: dict[str, Evidence] = {
    name: function for name, function in globals().items() if name in catalog.CLAIMS
}


def judged(records: list[Record]) -> ClaimResult:
    claim = records[0].config["claim"]
    (result,) = judge({claim: records})
    assert result.claim == claim
    return result


def test_every_claim_of_the_catalog_is_compared_and_has_made_up_evidence() -> None:
    assert list(TABLE) == list(catalog.CLAIMS)
    assert EVIDENCE.keys() == TABLE.keys()
    assert {
        s.measure for c in TABLE.values() for k in c.comparisons for s in (k.left, k.right)
    } <= MEASURES.keys()


@pytest.mark.parametrize("claim", catalog.CLAIMS)
@pytest.mark.parametrize(("lean", "verdict"), [(20, SUPPORTED), (-20, AGAINST), (0, OPEN)])
def test_a_verdict_follows_the_records(claim: str, lean: float, verdict: str) -> None:
    result = judged(EVIDENCE[claim](lean, SEEDS))
    rows = [row for row in result.rows if row.verdict != "context"]
    assert {row.verdict for row in rows} == {verdict}, rows
    assert result.verdict == verdict
    assert all(row.pairs == SEEDS for row in rows)
    for row in rows:
        assert row.effect is not None and row.low is not None and row.high is not None and row.p is not None
        assert row.low <= row.effect <= row.high
        assert row.p_holm is not None and row.p_holm >= row.p


@pytest.mark.parametrize("claim", catalog.CLAIMS)
def test_one_seed_is_not_enough_and_it_says_so(claim: str) -> None:
    result = judged(EVIDENCE[claim](20, 1))
    assert result.verdict == MISSING
    for row in result.rows:
        if row.verdict == MISSING:
            assert "1 pair" in row.missing
            assert row.p is None and row.low is None


@pytest.mark.parametrize("claim", catalog.CLAIMS)
def test_a_side_that_nobody_ran_is_named(claim: str) -> None:
    comparison = TABLE[claim].comparisons[0]
    records = EVIDENCE[claim](20, SEEDS)
    name = dict(comparison.right.where)["norm.name"]
    left = [record for record in records if record.identity["norm"]["name"] != name]
    if left:
        result = judged(left)
        assert result.verdict == MISSING
        assert any(f"norm.name={name}" in row.missing for row in result.rows)


# What a comparison is made of


def test_a_pair_by_hand() -> None:
    # Differences -1, -2, -3: mean -2, sd 1, error 1 / sqrt(3); t(0.975, 2) = 4.302653; t = -3.4641 has
    # p = 1 - |t| / sqrt(t^2 + 2) = 0.074180 with two degrees of freedom.
    values = {"bn": (19.0, 18.0, 17.0), "none": (20.0, 20.0, 20.0)}
    records = [make_record(claim="accuracy", seed=s, error=e) for s, e in enumerate(values["bn"])]
    records += [make_record(claim="accuracy", seed=s, error=e, **NONE) for s, e in enumerate(values["none"])]
    (row,) = judged(records).rows
    half = 4.302653 / 3**0.5
    assert (row.effect, row.low, row.high) == pytest.approx((-2, -2 - half, -2 + half), abs=1e-5)
    assert (row.d_z, row.p, row.p_holm) == pytest.approx((-2, 0.074180, 0.074180), abs=1e-6)
    assert (row.left_mean, row.right_mean) == (18, 20)
    assert row.verdict == OPEN


def test_a_ratio_by_hand() -> None:
    # Ratios 2, 4, 8: geometric mean 4, and logs of mean 2 ln 2 and standard deviation ln 2.
    test: dict[str, Any] = {"identity_of": {"recipe.schedule": {"name": "range", "lr_end": 10.0}}}
    records = [
        make_record(claim="learning_rate", seed=seed, metrics={"largest_stable_lr": rate}, **settings, **test)
        for seed in range(3)
        for settings, rate in (({}, 2.0 ** (seed + 1)), (NONE, 1.0))
    ]
    (row,) = judged(records).rows
    assert row.ratio
    assert (row.effect, row.d_z) == pytest.approx((4, 2))
    assert row.high == pytest.approx(4 * 2 ** (4.302653 / 3**0.5), rel=1e-5)


def test_holm_by_hand() -> None:
    # Holm (1979): smallest first, times how many are left, never below the one before, never above 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_can_take_a_verdict_back() -> None:
    """Two comparisons are open although each one's own interval leaves out a ratio of one."""

    def shift(level: float) -> dict[str, float]:
        return dict.fromkeys(("input_drift", "gradient_change"), level)

    ratios = (0.80, 0.85, 0.90)
    records = [
        make_record(claim="covariate_shift", seed=seed, metrics=shift(value), **settings)
        for seed, ratio in enumerate(ratios)
        for settings, value in (({}, ratio), (NONE, 1.0))
    ]
    result = judged(records)
    for row in result.rows[:2]:
        assert row.high is not None and row.p is not None
        assert row.high < 1 and 0.03 < row.p < 0.05
        assert row.p_holm == pytest.approx(2 * row.p)
        assert row.verdict == OPEN


@pytest.mark.parametrize("differences", [[], [1.0], [2.0, 2.0]])
def test_what_tells_no_spread_has_no_interval(differences: list[float]) -> None:
    assert paired(differences) is None


def test_equal_differences_are_a_point_and_none_at_all_is_no_effect() -> None:
    found = paired([2.0, 2.0, 2.0])
    assert found is not None
    assert (found.low, found.high, found.p, found.d_z) == (2.0, 2.0, 0.25, None)
    nothing = paired([0.0, 0.0])
    assert nothing is not None
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 1.0)


def test_only_runs_that_agree_in_all_else_are_paired() -> None:
    other = [
        make_record(claim="accuracy", seed=s, error=20.0 + s / 9, **NONE, global_batch=128) for s in range(3)
    ]
    records = [make_record(claim="accuracy", seed=s, error=10.0) for s in range(3)] + other
    (row,) = judged(records).rows
    assert (row.pairs, row.verdict) == (0, MISSING)
    assert "no two runs agree" in row.missing
    seeds_apart = [make_record(claim="accuracy", seed=s, error=20.0, **NONE) for s in (7, 8, 9)]
    (row,) = judged(records[:3] + seeds_apart).rows
    assert row.verdict == MISSING


# Runs that diverged, or never got there


def test_a_run_that_never_reaches_the_target_counts_with_its_whole_budget() -> None:
    # 1024 images, 64 a step, 3 epochs: 48 steps.
    def run(steps: int | None, seed: int, **settings: Any) -> Record:
        metrics = {"steps_to_target": steps}
        return make_record(claim="convergence", seed=seed, metrics=metrics, target_error=30.0, **settings)

    bn = [run(12 + seed, seed) for seed in range(3)]
    (row,) = judged(
        bn + [run(None, s, **NONE, status="diverged" if s else "completed") for s in range(3)]
    ).rows
    assert row.verdict == SUPPORTED
    assert row.right_mean == pytest.approx(48)
    assert any("3 none run(s): never reached" in note for note in row.notes)
    nobody = [run(None, seed) for seed in range(3)] + [run(None, seed, **NONE) for seed in range(3)]
    assert judged(nobody).verdict == OPEN


def test_a_cut_off_run_is_left_out_even_where_divergence_counts() -> None:
    records = depth(20, SEEDS)
    last = next(r for r in reversed(records) if r.identity["norm"]["name"] == "none")
    last.status = "oom"
    row = next(row for row in judged(records).rows if row.pairs < SEEDS)
    assert row.pairs == SEEDS - 1
    assert "left out: 1 oom" in row.notes


def test_a_deep_net_that_diverges_counts_as_guessing() -> None:
    records = depth(0, SEEDS)
    for record in records:
        if record.identity["norm"]["name"] == "none" and record.identity["model"]["name"] == "resnet56":
            record.status = "diverged"
    result = judged(records)
    decided = [row for row in result.rows if row.verdict != "context"]
    assert result.verdict == SUPPORTED
    assert [row.right_mean for row in decided] == pytest.approx([90.0, 90.0])  # of ten classes
    assert {row.setting for row in decided} == {
        "resnet56, residual true",
        "resnet56, residual false",
    }


@pytest.mark.parametrize("claim", ["covariate_shift", "regularization", "inference"])
def test_elsewhere_what_diverged_is_left_out_and_counted(claim: str) -> None:
    """Those that are left are a choice, which is no verdict, unless as many are left out on either side."""
    records = EVIDENCE[claim](20, SEEDS)
    records[0].status = "diverged"
    after = judged(records)
    assert {row.pairs for row in after.rows} <= {SEEDS, SEEDS - 1}
    assert any("left out: 1 diverged" in row.notes for row in after.rows)
    if claim == "inference":  # one network on both sides, in the first of its comparisons
        assert after.rows[0].verdict == SUPPORTED
    else:
        assert after.verdict == MISSING
        assert any(row.missing.startswith("diverged: 1 of ") for row in after.rows)
    for record in records:
        if record.identity["seed"] == records[0].identity["seed"]:
            record.status = "diverged"
    assert judged(records).verdict == SUPPORTED


def test_survivors_alone_turn_no_verdict_against_the_side_that_trains() -> None:
    """Three of five networks without a norm diverge, and two get lucky."""
    records = [make_record(claim="accuracy", seed=s, error=20.0 + s / 9) for s in range(5)]
    for seed in range(5):
        lost: dict[str, Any] = (
            {"status": "diverged", "error": None} if seed < 3 else {"error": 15.0 + seed / 9}
        )
        records.append(make_record(claim="accuracy", seed=seed, **lost, **NONE))
    (row,) = judged(records).rows
    assert row.pairs == 5 and row.verdict != AGAINST
    assert any("3 none run(s): diverged" in note for note in row.notes)


def test_range_tests_count_however_they_ended_and_only_with_a_rate() -> None:
    test: dict[str, Any] = {"identity_of": {"recipe.schedule": {"name": "range", "lr_end": 10.0}}}

    def run(seed: int, rate: float | None, status: Status = "completed", **side: Any) -> Record:
        found = {"largest_stable_lr": rate, "lr_range_exhausted": rate == 9.9}
        return make_record(claim="learning_rate", seed=seed, metrics=found, status=status, **side, **test)

    records = [run(seed, 9.9) for seed in range(4)]
    records += [run(seed, 1.0 + seed / 9, "diverged", **NONE) for seed in range(3)] + [run(3, None, **NONE)]
    (row,) = judged(records).rows
    assert (row.pairs, row.verdict) == (3, SUPPORTED)
    assert any("4 bn run(s): stable to the end of the range" in note for note in row.notes)
    assert "left out: 1 without the number" in row.notes


def test_smallest_and_largest_are_those_of_each_setting_and_are_named() -> None:
    """A second network swept over other sizes is a setting of its own, not evidence that vanishes."""
    records = []
    for model, sizes in (("resnet8", (2, 64)), ("resnet20", (4, 64))):
        for nbs in sizes:
            cell = error(30.0 - (nbs == 64), model, nbs)
            for seed in range(3):
                numbers = {"val_error_running": cell(seed)["final_val_error"], "train_eval_error": 0.0}
                records.append(
                    make_record(claim="regularization", model=model, nbs=nbs, seed=seed, metrics=numbers)
                )
    gaps = [row for row in judged(records).rows if row.verdict != "context"]
    assert [(row.setting, row.left, row.right, row.pairs) for row in gaps] == [
        ("resnet8, NBS 2/64", "BN, smallest NBS (2)", "BN, largest NBS (64)", 3),
        ("resnet20, NBS 4/64", "BN, smallest NBS (4)", "BN, largest NBS (64)", 3),
    ]


def test_synchronized_is_the_world_of_a_pass() -> None:
    """With accumulation that is a part of the global batch."""
    records = []
    for nbs, level in ((2, 20.0), (32, 15.0)):
        for seed in range(3):
            one = make_record(claim="small_batch", nbs=nbs, world_size=2, seed=seed, error=level + seed / 9)
            one.identity["per_device_batch"] = 16
            records.append(one)
    sync = next(row for row in judged(records).rows if row.left.startswith("SyncBN"))
    assert (sync.left, sync.pairs) == ("SyncBN (32)", 3)


# Tuned learning rates


def test_what_was_chosen_on_held_out_images_is_compared_on_the_test_set() -> None:
    """BN at its best rate by the held-out images is the worse of the two on the test set."""
    records = accuracy(20, 4)
    for record in records:
        bn = record.identity["norm"]["name"] == "bn"
        record.metrics["test_error"] = (30.0 if bn else 20.0) + noise(record.identity["seed"], bn)
        record.identity["data"]["val_images"] = 100
    (row,) = judged(records).rows
    assert (row.measure, row.verdict) == ("test error %", AGAINST)
    assert row.left_mean == pytest.approx(30, abs=1)
    assert any("the best of 3" in note for note in row.notes)


def test_each_side_takes_its_best_rate_of_the_grid_that_both_have() -> None:
    def cell(lr: float, level: float, **settings: Any) -> list[Record]:
        return [
            make_record(claim="accuracy", seed=s, lr=lr, error=level + s / 10, **settings) for s in range(3)
        ]

    records = cell(0.1, 12) + cell(0.2, 10) + cell(0.4, 8)
    records += cell(0.1, 20, **NONE) + cell(0.2, 30, **NONE)
    (row,) = judged(records).rows
    assert (row.left_mean, row.right_mean) == pytest.approx((10.1, 20.1))
    words = " | ".join(row.notes)
    assert "BN: LR 0.4 left out, which the other side did not try" in words
    assert "BN: LR 0.2, the best of 2, on the upper edge of the grid" in words
    assert "none: LR 0.1, the best of 2, on the lower edge" in words
    assert "data.val_images" in words


def test_a_rate_at_which_a_seed_diverged_cannot_be_the_best() -> None:
    records = accuracy(20, 3)
    for record in records:
        if (
            record.identity["norm"]["name"] == "bn"
            and record.identity["recipe"]["lr"] == 0.1
            and not record.identity["seed"]
        ):
            record.status = "diverged"
    (row,) = judged(records).rows
    assert row.pairs == 3
    assert any("at 1 of them a seed has no number" in note for note in row.notes)


# From files


def test_a_run_is_evidence_for_its_own_claim_though_another_folder_holds_it_too(tmp_path: Path) -> None:
    for claim in (None, "accuracy", "placement"):
        for seed in range(3):
            write(tmp_path / str(claim), make_record(claim=claim, seed=seed, error=10.0 + seed))
            write(tmp_path / str(claim), make_record(claim=claim, seed=seed, error=20.0, **NONE))
    found = collect([tmp_path])
    assert found.runs.height == 6
    assert {claim: len(records) for claim, records in found.evidence.items()} == {
        "accuracy": 6,
        "placement": 6,
    }
    results = {result.claim: result.verdict for result in judge(found.evidence)}
    assert results == {"accuracy": SUPPORTED, "placement": MISSING}


def test_a_claim_that_this_version_does_not_know_is_no_reason_to_fail(tmp_path: Path) -> None:
    write(tmp_path, make_record(claim="from-the-future"))
    assert judge(collect([tmp_path]).evidence) == []
