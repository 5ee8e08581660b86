"""`hydra/launcher=slurm` on a real cluster: it submits and returns; jobs share worlds, and run the code of then."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.commands import records
from tests.slurm.jobs import ROOT, TINY_RUN, Slurm

pytestmark = pytest.mark.slurm
LAUNCHER = ("-m", "hydra/launcher=slurm", "trainer.devices=1")


def submissions(place: Path, name: str) -> list[Path]:
    return sorted((place / "runs" / name / ".submissions").iterdir())


def scripts(place: Path, name: str) -> list[str]:
    return [path.read_text() for path in (place / "runs" / name).glob(".submissions/*/*/*_submission.sh")]


def numbers(place: Path, name: str) -> list[str]:
    known = json.loads((submissions(place, name)[-1] / "submitted.json").read_text())
    return sorted(set(known.values()))


def test_it_submits_what_the_plan_showed_and_returns_and_cells_share_a_world(slurm: Slurm) -> None:
    words = (
        *LAUNCHER,
        *TINY_RUN,
        "norm=bn,gn,ln",
        "seed=0,1",
        "hydra.launcher.cells_per_job=2",
        "name=swept",
    )
    held = "hydra.launcher.additional_parameters={hold: true}"
    planned = slurm.bnbench("plan", "--json", *words, held)
    assert planned.returncode == 0, planned.stderr
    (array,) = json.loads(planned.stdout)["slurm"]
    assert not (slurm.place / "runs").exists()
    assert [len(job) for job in array["jobs"]] == [4, 2]
    submitted = slurm.bnbench("train", *words, held)
    assert submitted.returncode == 0, submitted.stderr
    assert scripts(slurm.place, "swept") == [array["script"]]
    assert (
        "SLURM: 2 job(s) of at most 2 cell(s), 6 run(s), each job on 1 node(s) x 1 rank(s)"
        in submitted.stdout
    )
    jobs = numbers(slurm.place, "swept")
    number = jobs[0].partition("_")[0]
    assert jobs == [f"{number}_0", f"{number}_1"]
    assert f"squeue --jobs {number}" in submitted.stdout
    # What waits is not submitted twice.
    again = slurm.bnbench("train", *words, held)
    assert again.returncode == 0 and f"6 run(s) are in SLURM's hands already: {number}" in again.stdout
    assert len(submissions(slurm.place, "swept")) == 1
    slurm.call("scontrol", "release", number)
    for job in jobs:
        slurm.wait(job, "COMPLETED")
    found = records(slurm.place / "runs/swept")
    assert sorted(Counter(record.provenance["slurm_job"] for record in found).values()) == [2, 4]
    assert {record.status for record in found} == {"completed"}
    done = slurm.bnbench("train", *words)
    assert done.returncode == 0 and "6 of 6 run(s) are finished already" in done.stdout
    assert len(submissions(slurm.place, "swept")) == 1


def test_waiting_it_tells_what_came_of_it_and_a_run_that_breaks_costs_nobody_elses(slurm: Slurm) -> None:
    """Two of a job's four runs break by their own fault; the next start leaves each, and no other loses its turn."""
    words = (
        "-m", "hydra/launcher=slurm", *TINY_RUN, "model=custom", "model.name=slow_net.Net",
        "+model.options.fails=true,null", "seed=0,1", "hydra.launcher.cells_per_job=2", "hydra.launcher.wait=true",
        "hydra.launcher.max_restarts=0", "name=waited",
    )  # fmt: skip
    done = slurm.bnbench("train", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    found = records(slurm.place / "runs/waited")
    assert Counter(record.status for record in found) == {"completed": 2, "failed": 2}
    assert all("this network fails" in (record.error or "") for record in found if record.status == "failed")
    (number,) = numbers(slurm.place, "waited")
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "2"), slurm.said(number)
    assert done.stderr.count("failed: RuntimeError: this network fails") == 2
    assert "val. error %" in done.stdout


def test_jobs_run_the_code_of_their_submission(slurm: Slurm) -> None:
    """bnbench's and the user's own, though both are edited while the job waits, and the job starts in that folder."""
    slurm.call(
        "cp", "-r", *(str(ROOT / name) for name in ("bnbench", "conf", "hydra_plugins")), str(slurm.place)
    )
    words = (*LAUNCHER, *TINY_RUN, "model=custom", "model.name=slow_net.Net", "seed=0", "name=frozen")
    checkout = {"PYTHONPATH": str(slurm.place)}
    done = slurm.bnbench("train", *words, "hydra.launcher.additional_parameters={hold: true}", **checkout)
    assert done.returncode == 0, done.stderr
    for path in (
        slurm.place / "bnbench/training/run.py",
        slurm.place / "bnbench/__init__.py",
        slurm.place / "slow_net.py",
    ):
        path.write_text("raise SystemExit('edited while the job waited')\n")
    (number,) = numbers(slurm.place, "frozen")
    slurm.call("scontrol", "release", number)
    slurm.wait(number, "COMPLETED")
    (record,) = records(slurm.place / "runs/frozen")
    assert record.status == "completed"


def test_what_slurm_refuses_is_one_line_and_leaves_no_run(slurm: Slurm) -> None:
    done = slurm.bnbench(
        "train", *LAUNCHER, *TINY_RUN, "seed=0", "hydra.launcher.partition=nowhere", "name=refused"
    )
    assert done.returncode == 2
    (line,) = (
        line for line in done.stderr.splitlines() if not line.startswith("sbatch: ")
    )  # which speaks too
    assert "SLURM takes no such job" in line
    assert "Invalid partition name" in line
    assert not (slurm.place / "runs").exists()
