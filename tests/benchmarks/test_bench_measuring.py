"""`bnbench bench measuring`: what is compared with what. No time is judged here."""

from __future__ import annotations

import json

import pytest

from bnbench import cli
from bnbench.benchmarks import measuring
from bnbench.benchmarks.block import WARMUP_STEPS
from bnbench.compose import compose_jobs
from bnbench.training.callbacks.speed import COUNTED_STEP, FIRST_LOOK

TINY = {"tiny": (("model.width=4", "global_batch=4"), 6)}


def test_contenders_differ_in_what_they_measure_alone():
    runs = {name: measuring._config((), 6, words) for name, words in measuring.CONTENDERS.items()}
    assert runs["off"] == runs["off again"]
    assert len({json.dumps(run.identity(), sort_keys=True) for run in runs.values()}) == 1
    (users,) = compose_jobs([], multirun=False)
    every = {name: run.measure.speed_every for name, run in runs.items()}
    assert every == {
        "off": None,
        "off again": None,
        "on": users.measure.speed_every,
        "looks": measuring.CYCLE,
    }
    assert all(run.measure.health_every is None for run in runs.values())


def _busy(look: float, prepare: float, count: float, steps: int = 24) -> list[float]:
    """CPU times at the ends of steps of 10 s, of which a look, its preparation and the count take more."""
    busy = [100.0]
    for step in range(2, steps + 1):
        took = 10.0
        if step >= FIRST_LOOK:
            took += {0: look, 2: prepare}.get(step % measuring.CYCLE, 0.0)
        took += {COUNTED_STEP: 10.0 + count, COUNTED_STEP + 1: 10.0}.get(step, 0.0)
        busy.append(busy[-1] + took)
    return busy


def test_a_look_costs_its_own_step_and_the_one_before():
    found = measuring.extras(_busy(look=2.0, prepare=0.5, count=5.0))
    assert len(found) == (24 - WARMUP_STEPS) // measuring.CYCLE
    assert found == pytest.approx([0.25] * len(found))
    assert measuring.extras(_busy(0.0, 0.0, 0.0)) == pytest.approx([0.0] * len(found))


def test_the_counted_step_is_compared_with_one_as_cold():
    assert measuring.counted(_busy(0.0, 0.0, count=5.0)) == pytest.approx(0.5)


def test_the_verdict_is_of_the_interval():
    verdicts = [
        measuring.share_of_training("s", {"median": low, "low": low, "high": high}).met
        for low, high in ((0.0, 0.01), (0.01, 0.03), (0.03, 0.04))
    ]
    assert verdicts == ["yes", "open", "no"]


def test_it_runs_and_says_what_it_found():
    result = measuring.measure(1, TINY)
    found = result["by_size"]["tiny"]
    for key in ("look", "noise", "count", "share"):
        assert found[key]["low"] <= found[key]["median"] <= found[key]["high"], key
    assert set(found["blocks"]) == {"off again", "on"}
    json.dumps(result, allow_nan=False)
    assert "tiny: " in measuring.table(result) and "at most 0.02" in measuring.table(result)


def test_no_rounds_is_a_line(capsys):
    assert cli.main(["bench", "measuring", "--rounds", "0"]) == 2
    assert "--rounds=0 must be at least 1" in capsys.readouterr().err
