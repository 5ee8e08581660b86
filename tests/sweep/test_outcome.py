"""The record of a run whose ranks could not write it: never over a better one, nor into another's run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.lock import NAME, RunLock
from bnbench.records import FOREIGN, RECORD, digest, read_record, write_record
from bnbench.sweep import outcome, spawned
from bnbench.sweep.outcome import Outcome, write_failure
from bnbench.sweep.spawned import SpawnedWorld
from bnbench.sweep.stopping import StopRequest
from tests.records_factory import make_record


@pytest.fixture
def job(tmp_path: Path) -> RunConfig:
    return compose_jobs([f"dir={tmp_path}", "logger=none", "trainer.devices=1"])[0]


def test_a_failure_is_written_once_and_leaves_no_lock(job: RunConfig) -> None:
    assert write_failure(job, "failed", "why") == Outcome(job, "failed", "why")
    record = read_record(job.folder / RECORD)
    assert (record.status, record.error, record.id) == ("failed", "why", digest(job.identity()))
    assert not (job.folder / NAME).exists()
    assert write_failure(job, "oom", "again").status == "oom"
    assert read_record(job.folder / RECORD).status == "oom", "no result: the later start's counts"


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("status", ["completed", "diverged", FOREIGN])
def test_a_finished_result_stays(job: RunConfig, status: str, locked: bool) -> None:
    foreign = status == FOREIGN
    path = write_record(job.folder, make_record(status="completed" if foreign else status))  # type: ignore[arg-type]
    if foreign:
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    before = path.read_bytes()
    assert write_failure(job, "preempted", "Ctrl-C", locked=locked) == Outcome(job, status)
    assert path.read_bytes() == before


def test_a_run_that_another_process_trains_is_left_to_it(job: RunConfig, monkeypatch) -> None:
    monkeypatch.setattr(outcome, "LETTING_GO_SECONDS", 0.1)
    job.folder.mkdir(parents=True)
    theirs = RunLock(job.folder)
    assert theirs.take()
    assert write_failure(job, "preempted", "Ctrl-C") == Outcome(job, "elsewhere")
    assert not (job.folder / RECORD).exists()
    # Not so if it is a rank of the same world, whose end this process tells.
    assert write_failure(job, "oom", "why", locked=True).status == "oom"
    assert (job.folder / NAME).exists()
    theirs.release()


def test_a_record_that_cannot_be_written_is_a_warning_and_not_the_end(
    job: RunConfig, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(outcome, "provenance", lambda: {"x": float("inf")})
    assert write_failure(job, "failed", "why") == Outcome(job, "failed", "why")
    assert "no record of" in caplog.text
    assert not (job.folder / RECORD).exists() and not (job.folder / NAME).exists()


class _Gone:
    """A rank's process that has ended."""

    def __init__(self, code: int) -> None:
        self.exitcode = code

    def join(self, seconds: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


def _ended(monkeypatch: pytest.MonkeyPatch, job: RunConfig, code: int, after: float = 0.0) -> Outcome:
    """What a starter makes of a run whose only rank has ended, so many seconds after it began."""

    def start(self: SpawnedWorld, *_: Any) -> None:
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        self._pipes, self._ranks = [ours], [_Gone(code)]  # type: ignore[list-item]

    monkeypatch.setattr(SpawnedWorld, "_start", start)
    now = 1000.0
    monkeypatch.setattr(spawned.time, "monotonic", lambda: now)
    world = SpawnedWorld(job)
    world.begin(job)
    now += after
    found = world.hear(set(world.pipes), StopRequest(), lambda config, event: None)
    assert found is not None and not world.alive
    return found


def test_a_rank_that_is_killed_after_its_record_has_finished_its_run(job: RunConfig, monkeypatch) -> None:
    """It may sit in W&B's finish for a minute yet."""
    path = write_record(job.folder, make_record())
    before = path.read_bytes()
    assert _ended(monkeypatch, job, -signal.SIGKILL) == Outcome(job, "completed")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("accelerator", "code", "share_of_timeout", "status"),
    [
        ("auto", -signal.SIGABRT, 1.1, "timeout"),  # NCCL's watchdog
        ("auto", -signal.SIGABRT, 0.5, "failed"),  # too early to be that
        ("cpu", -signal.SIGABRT, 1.1, "failed"),
        ("auto", -signal.SIGSEGV, 1.1, "failed"),
    ],
)
def test_an_abort_by_nccl_is_a_timeout(
    job: RunConfig, monkeypatch, accelerator: str, code: int, share_of_timeout: float, status: str
) -> None:
    job = dataclasses.replace(job, trainer=dataclasses.replace(job.trainer, accelerator=accelerator))
    found = _ended(monkeypatch, job, code, share_of_timeout * job.trainer.collective_timeout.total_seconds())
    assert found.status == read_record(job.folder / RECORD).status == status
    assert f"rank 0: ended with exit code {code}" in (found.error or "")
