"""Ranks that something else started: what one of them hears, all do, and a requeued job leaves what broke."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.records import write_record
from bnbench.sweep import pool
from bnbench.sweep.attached import _handed_out
from bnbench.sweep.plan import plan_sweep
from bnbench.sweep.queue import Queue
from bnbench.sweep.stopping import StopRequest
from tests.records_factory import make_record


class _AnotherRankWasAsked:
    leads = True

    def any_of(self, value: bool) -> bool:
        return True

    def from_leader(self, value: Any) -> Any:
        return value


def test_a_rank_knows_that_another_was_asked_to_stop() -> None:
    """The one that tells how it ended may have had no signal itself."""
    stop = StopRequest()
    assert list(_handed_out(Queue([]), _AnotherRankWasAsked(), stop)) == []
    assert stop.asked and stop.exit_code == 143


def _broke(run: RunConfig, job: str) -> None:
    record = make_record(status="oom")
    write_record(run.folder, dataclasses.replace(record, provenance=record.provenance | {"slurm_job": job}))


@pytest.mark.parametrize("left", [0, 1])
def test_a_requeued_job_joins_for_what_is_left_be_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    runs = compose_jobs([f"dir={tmp_path}", "seed=0,1", "logger=none"], multirun=True)
    for run in runs[left:]:
        _broke(run, "7")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(pool, "place_given", lambda: Place(0, 2, 0, 2, "srun"))
    joined: list[Any] = []

    def attached(
        place: Place, trainer: Any, todo: list[RunConfig], stop: StopRequest, apart: Any
    ) -> list[Any]:
        joined.append((trainer, todo))
        return []

    monkeypatch.setattr(pool, "run_attached", attached)
    outcomes = pool.run_all(plan_sweep(runs))
    assert joined == [(runs[0].trainer, runs[:left])]
    assert [(o.config.seed, o.status, o.earlier) for o in outcomes] == [
        (run.seed, "oom", True) for run in runs[left:]
    ]
