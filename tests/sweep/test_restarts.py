"""What a SLURM job's script decides between two starts, by the launcher and by the batch files; SLURM is made up."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnbench.config import RunConfig
from bnbench.lock import RunLock
from bnbench.sweep import batch, restarts, slurm_job
from bnbench.sweep.restarts import broken_in, own_number, restarted
from bnbench.sweep.slurm import JOBS
from bnbench.sweep.slurm_job import Job
from tests.end_to_end.commands import clean_environment
from tests.sweep.test_slurm import SBATCH, runs, write


class Scontrol:
    """What a job asks scontrol for, and what that says of its state."""

    def __init__(self) -> None:
        self.state, self.requeued = "JobState=RUNNING Reason=None", list[str]()

    def __call__(self, command: list[str], **_: Any) -> Any:
        if command[1] == "requeue":
            self.requeued.append(command[2])
        return subprocess.CompletedProcess(command, 0, stdout=f"JobId=77 {self.state} Dependency=(null)\n")


@pytest.fixture
def scontrol(monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    made_up = Scontrol()
    monkeypatch.setattr(restarts.subprocess, "run", made_up)
    for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return made_up


# One more start


def test_a_task_of_an_array_is_requeued_and_not_the_array(
    scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last task's SLURM_JOB_ID is the array's number."""
    assert own_number({"SLURM_JOB_ID": "70"}) == "70"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert restarts.start_again("told to stop", 143) == 0
    assert scontrol.requeued == ["77_3"]


@pytest.mark.parametrize(
    ("state", "again"),
    [
        ("JobState=RUNNING Reason=None", True),
        ("JobState=COMPLETING Reason=TimeLimit", True),  # stopping took longer than the grace
        ("JobState=TIMEOUT Reason=TimeLimit", True),
        ("JobState=COMPLETING Reason=None", False),  # scancel; or requeued from outside
        ("JobState=CANCELLED Reason=None", False),
        ("", False),  # no answer
    ],
)
def test_what_slurm_has_decided_stands(scontrol: Scontrol, state: str, again: bool) -> None:
    """As SLURM 22.05 says it. It would requeue a cancelled job, too."""
    scontrol.state = state
    assert restarts.start_again("told to stop", 143) == (0 if again else 143)
    assert bool(scontrol.requeued) == again


def test_a_restart_is_told_from_a_second_srun_in_one_allocation() -> None:
    assert restarted({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert not restarted({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"})
    assert not restarted({"SLURM_JOB_ID": "7"})
    assert not restarted({})


# A job of the launcher


@pytest.fixture
def job(tmp_path: Path, scontrol: Scontrol) -> Job:
    """Three runs, on the third restart in vain it is over."""
    asked = runs("norm=bn", "seed=0,1,2", f"dir={tmp_path}")
    known = {"max_restarts": 2, "jobs": [[dataclasses.asdict(run) for run in asked]]}
    (tmp_path / JOBS).write_text(json.dumps(known))
    job = Job.read(str(tmp_path), 0)
    assert job.runs == asked, "what is written is what is read"
    return job


def test_what_broke_in_this_job_is_left_and_what_broke_in_another_is_not(
    job: Job, scontrol: Scontrol
) -> None:
    first, second, third = job.runs
    write(first, "completed", "77")
    write(second, "failed", "77")
    write(third, "failed", "76")
    assert job.todo() == [third]
    assert [outcome.config for outcome in broken_in("77", job.runs)] == [second]
    assert broken_in(None, job.runs) == []
    assert slurm_job.end(str(job.folder), 1) == 0 and scontrol.requeued == ["77"]
    write(third, "diverged", "77")
    assert slurm_job.end(str(job.folder), 0) == 1 and len(scontrol.requeued) == 1, (
        "done, and one of them failed"
    )
    write(second, "completed", "77")
    assert slurm_job.end(str(job.folder), 0) == 0 and len(scontrol.requeued) == 1


def test_a_refused_run_is_not_tried_again(job: Job, scontrol: Scontrol) -> None:
    for run in job.runs[:2]:
        write(run, "completed", "77")
    job.refuse([job.runs[2].folder.name])
    assert slurm_job.end(str(job.folder), 0) == 1 and not scontrol.requeued


def test_restarts_end_when_they_bring_nothing_and_only_then(
    job: Job, scontrol: Scontrol, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(job.folder)

    def start() -> tuple[int, int]:
        """What its begin says, and how often it has asked to be requeued by its end."""
        code = slurm_job.begin(folder)
        if code == 0:
            slurm_job.end(folder, 143)
        return code, len(scontrol.requeued)

    checkpoints = job.runs[0].folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    assert [start(), start()] == [(0, 1), (0, 2)]
    for count in range(3, 9):  # each start brings a checkpoint
        assert slurm_job.begin(folder) == 0
        (checkpoints / f"step-{count}.ckpt").touch()
        slurm_job.end(folder, 143)
        assert len(scontrol.requeued) == count
    assert [start(), start()] == [(0, 9), (0, 10)]
    assert start() == (0, 10), "two restarts in a row in vain: no third"
    said = capfd.readouterr().err
    assert "hydra.launcher.max_restarts=2 start(s) in a row brought neither a checkpoint nor a record" in said
    assert job.runs[0].run_name in said
    # Requeued by SLURM all the same, as after a node's death.
    assert slurm_job.begin(folder) == 1
    write(job.runs[0], "failed", "77")
    assert start() == (0, 11), "a failure is news too"


def test_what_other_jobs_have_in_hand_is_left_to_them(
    job: Job, scontrol: Scontrol, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else two jobs with the same runs would start again and again for as long as one of them trains."""
    assert slurm_job.end(str(job.folder), 75) == 0 and not scontrol.requeued
    assert "3 run(s) are being trained by another job" in capfd.readouterr().out


def test_what_other_jobs_bring_is_not_this_jobs(job: Job) -> None:
    mine, theirs, done = job.runs
    write(done, "completed", "76")
    write(mine, "preempted", "77")
    for run in (mine, theirs):
        (run.folder / "checkpoints").mkdir(parents=True)
        (run.folder / "checkpoints" / "step-1.ckpt").touch()
    lock = RunLock(theirs.folder)
    assert lock.take()
    try:
        assert job.traces() == [str(mine.folder / "checkpoints" / "step-1.ckpt")]
    finally:
        lock.release()


# A job of a batch file


@pytest.fixture
def words(tmp_path: Path, scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of two runs, in a job of two tasks."""
    given = {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    for key in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.setenv(key, "")  # put back what `check` sets
        monkeypatch.delenv(key)
    return [
        "-m", "norm=bn", "seed=0,1", "logger=none", "trainer.devices=2", "trainer.accelerator=cpu", f"dir={tmp_path}"
    ]  # fmt: skip


def asked(words: list[str]) -> list[RunConfig]:
    return runs(*(word for word in words if word[0] != "-"))


@pytest.mark.parametrize("code", [0, 75, 2])
def test_what_is_done_elsewhere_or_wrong_is_not_started_again(
    words: list[str], scontrol: Scontrol, code: int
) -> None:
    assert batch.end(code, 20, words) == (0 if code == 75 else code)
    assert not scontrol.requeued


@pytest.mark.parametrize("code", [1, 137, 143])
def test_what_is_left_is_one_more_start_until_the_cap(
    words: list[str],
    scontrol: Scontrol,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(asked(words)[0], "failed", "77")
    assert batch.end(code, 2, words) == 0 and scontrol.requeued == ["77"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert batch.end(code, 2, words) == code and len(scontrol.requeued) == 1
    assert f"restarted 2 times, and srun ended with {code} again" in capfd.readouterr().err


def test_where_nothing_is_missing_a_signal_that_found_srun_ending_is_no_failure(
    words: list[str], scontrol: Scontrol
) -> None:
    for run in asked(words):
        write(run, "completed", "77")
    assert batch.end(128 + signal.SIGUSR1, 20, words) == 0 and not scontrol.requeued


def test_where_all_that_is_missing_broke_in_this_job_it_ends(words: list[str], scontrol: Scontrol) -> None:
    first, second = asked(words)
    write(first, "failed", "77")
    write(second, "completed", "77")
    assert batch.end(1, 20, words) == 1 and not scontrol.requeued
    write(first, "failed", "76")
    assert batch.end(1, 20, words) == 0 and scontrol.requeued == ["77"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("norm=nosuch", "unknown norm 'nosuch'"),
        ("trainer.devices=3", "srun started 2 rank(s), 2 on each of 1 node(s), but the run asks for trainer.devices=3"),
        ("hydra/launcher=slurm", "hydra/launcher=slurm submits jobs"),
    ],
)  # fmt: skip
def test_wrong_words_end_a_job_before_any_rank_starts(
    words: list[str], wrong: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert batch.main(["check", *words]) == 0
    assert batch.main(["check", *words, "global_batch=66", wrong]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bnbench train: ") and said in line


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_a_batch_file_told_to_end_with_its_ranks_starts_again(path: Path, tmp_path: Path) -> None:
    """SLURM at the time limit: TERM to the shell, too. srun and scontrol are made up."""
    made_up = {
        "srun": 'kill -TERM "$PPID"; exit 143',
        "scontrol": 'echo "$@" >>calls; echo JobState=COMPLETING Reason=TimeLimit',
    }
    for name, text in made_up.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "SLURM_PROCID": "0",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1",
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", path, "logger=none"], cwd=tmp_path, env=clean_environment(**job), capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["-o show job 77_1", "requeue 77_1"]
