"""Jobs that are stopped, by a limit, by others, by hand or by a node's death: they go on, and end as if undisturbed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bnbench.records import Record
from tests.end_to_end.commands import records
from tests.slurm.jobs import NO_GPU, ROOT, SLOW_RUN, STEPS, Slurm, until

pytestmark = pytest.mark.slurm
SINGLE = str(ROOT / "slurm" / "single_node.sbatch")
LAUNCHER = ("-m", "hydra/launcher=slurm", *SLOW_RUN)


@pytest.fixture(scope="module")
def undisturbed(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    """The records of the same runs without any trouble, by world size."""
    place = tmp_path_factory.mktemp("undisturbed")
    cluster.begin(place)
    for devices in (1, 2):
        done = cluster.bnbench("train", *SLOW_RUN, f"trainer.devices={devices}", f"name=d{devices}")
        assert done.returncode == 0, done.stderr
    return {record.identity["world_size"]: record for record in records(place)}


def submitted(slurm: Slurm, *words: str, seconds: float) -> str:
    """The job of a run whose steps take so many seconds."""
    done = slurm.bnbench("train", *LAUNCHER, "trainer.devices=1", *words, SLOW=str(seconds))
    assert done.returncode == 0, done.stderr
    (path,) = slurm.place.glob("runs/*/.submissions/1/submitted.json")
    (number,) = json.loads(path.read_text()).values()
    return number


def checkpoints(slurm: Slurm) -> list[Path]:
    return list(slurm.place.glob("runs/*/*/checkpoints/*.ckpt"))


def assert_went_on(slurm: Slurm, undisturbed: dict[int, Record]) -> None:
    (record,) = records(slurm.place / "runs")
    whole = undisturbed[record.identity["world_size"]]
    assert record.status == "completed"
    assert record.id == whole.id
    assert record.metrics == whole.metrics, "weights and all"
    resumed = record.provenance["resumed"]
    assert resumed
    assert all(0 < each["step"] < STEPS for each in resumed)


def test_a_job_at_its_time_limit_makes_a_checkpoint_and_goes_on(slurm: Slurm, undisturbed) -> None:
    """By the sbatch file. SLURM looks at its clock by the half minute: the signal comes up to that much early."""
    words = (*SLOW_RUN, "trainer.checkpoint_minutes=null")
    limits = ("--ntasks-per-node=1", "--time=20", "--signal=USR1@80")
    job = slurm.sbatch(*NO_GPU, *limits, SINGLE, *words, SLOW="0.5")
    until(lambda: list(slurm.place.glob("runs/*/*/epochs.csv")), 120, lambda: slurm.said(job))
    slurm.call("scontrol", "update", f"JobId={job}", "EndTime=now+100")  # not by --time: starts vary
    until(lambda: slurm.job(job)["Restarts"] == "1", 120, lambda: slurm.said(job))
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    slurm.wait(job, "COMPLETED", seconds=240)
    assert_went_on(slurm, undisturbed)
    said = (slurm.place / f"bnbench-{job}.out").read_text()
    assert "bnbench: srun ended with 143: requeued" in said
    assert "DUE TO TIME LIMIT" not in said, "it left before it was killed"


def test_a_preempted_job_makes_a_checkpoint_and_goes_on(slurm: Slurm, undisturbed) -> None:
    """By the launcher; a job of a higher partition wants both nodes."""
    number = submitted(slurm, "trainer.checkpoint_minutes=null", seconds=0.2)
    until(lambda: list(slurm.place.glob("runs/*/*/epochs.csv")), 120, lambda: slurm.said(number))
    urgent = slurm.sbatch(
        "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    slurm.wait(urgent, "COMPLETED", seconds=120)
    slurm.wait(number, "COMPLETED")
    assert_went_on(slurm, undisturbed)


def test_a_job_requeued_from_outside_makes_a_checkpoint_and_goes_on(slurm: Slurm, undisturbed) -> None:
    """SIGTERM alone, to all ranks; two of them agree on the step."""
    job = slurm.sbatch(*NO_GPU, SINGLE, *SLOW_RUN, "trainer.checkpoint_minutes=null", SLOW="0.2")
    until(lambda: list(slurm.place.glob("runs/*/*/epochs.csv")), 120, lambda: slurm.said(job))
    slurm.call("scontrol", "requeue", job)
    slurm.wait(job, "COMPLETED")
    assert_went_on(slurm, undisturbed)


def test_a_node_that_dies_costs_what_its_last_checkpoint_lacks(slurm: Slurm, undisturbed) -> None:
    number = submitted(slurm, seconds=0.2)
    until(lambda: len(checkpoints(slurm)) == 2, 120, lambda: slurm.said(number))
    slurm.kill_node(int(slurm.job(number)["NodeList"][-1]))
    slurm.wait(number, "COMPLETED")
    assert_went_on(slurm, undisturbed)
    assert int(slurm.job(number)["Restarts"]) == 1


def test_a_rank_that_is_killed_costs_the_same_and_is_no_failure_of_its_run(slurm: Slurm, undisturbed) -> None:
    """Rank 1 of two: the other one loses its peer, and is no witness of why."""
    job = slurm.sbatch(*NO_GPU, SINGLE, *SLOW_RUN, SLOW="0.2")
    until(lambda: len(checkpoints(slurm)) == 2, 120, lambda: slurm.said(job))
    slurm.call("scancel", "--signal=KILL", f"{job}.0")
    slurm.wait(job, "COMPLETED")
    assert_went_on(slurm, undisturbed)


@pytest.mark.parametrize("by", ["batch file", "launcher"])
def test_a_job_that_is_not_done_with_stopping_at_its_time_limit_starts_again(slurm: Slurm, by: str) -> None:
    """A step takes longer than the grace and KillWait together: SLURM ends the ranks, and would end the script."""
    words = (*SLOW_RUN, "trainer.devices=1")
    if by == "launcher":
        job = submitted(slurm, seconds=60)
    else:
        job = slurm.sbatch(*NO_GPU, "--ntasks-per-node=1", SINGLE, *words, SLOW="60")
    until(lambda: list(slurm.place.glob("runs/*/*/.lock")), 120, lambda: slurm.said(job))
    time.sleep(3)  # into the first step
    slurm.call("scancel", "--signal=USR1", f"{job}.0")
    slurm.call("scontrol", "update", f"JobId={job}", "EndTime=now")
    until(lambda: slurm.job(job)["Restarts"] == "1", 120, lambda: slurm.said(job))
    assert "DUE TO TIME LIMIT" in slurm.said(job)


def test_the_last_task_of_an_array_starts_again_alone(slurm: Slurm) -> None:
    """Its SLURM_JOB_ID is the number of the array."""
    words = (
        "-m", "hydra/launcher=slurm", *SLOW_RUN, "trainer.devices=1", "norm=bn,gn", "trainer.checkpoint_minutes=null"
    )  # fmt: skip
    done = slurm.bnbench("train", *words, SLOW="0.2")
    assert done.returncode == 0, done.stderr
    (path,) = slurm.place.glob("runs/*/.submissions/1/submitted.json")
    number = next(iter(json.loads(path.read_text()).values())).partition("_")[0]
    until(
        lambda: len(list(slurm.place.glob("runs/*/*/epochs.csv"))) == 2,
        120,
        lambda: slurm.said(f"{number}_1"),
    )
    assert slurm.job(f"{number}_1")["JobId"] == number
    slurm.call("scancel", "--signal=USR1", f"{number}_1")
    for task in (0, 1):
        slurm.wait(f"{number}_{task}", "COMPLETED")
    assert [slurm.job(f"{number}_{task}")["Restarts"] for task in (0, 1)] == ["0", "1"]
    assert sorted(len(record.provenance["resumed"]) for record in records(slurm.place / "runs")) == [0, 1]


def test_starts_that_bring_nothing_have_an_end(slurm: Slurm) -> None:
    """The step is killed again and again before its first checkpoint."""
    number = submitted(slurm, "hydra.launcher.max_restarts=1", seconds=5)
    for start in (0, 1):
        until(
            lambda start=start: (
                slurm.job(number)["JobState"] == "RUNNING"
                and slurm.job(number)["Restarts"] == str(start)
                and "StepId" in slurm.call("scontrol", "-o", "show", "step", f"{number}.0")
            ),
            60,
            lambda: slurm.said(number),
        )
        slurm.call("scancel", "--signal=KILL", f"{number}.0")
    ended = slurm.wait(number, "FAILED")
    assert ended["Restarts"] == "1"
    said = slurm.said(number)
    assert (
        "hydra.launcher.max_restarts=1 start(s) in a row brought neither a checkpoint nor a record of" in said
    )
    assert not list(slurm.place.glob("runs/*/*/record.json"))


def test_a_cancelled_job_stays_cancelled(slurm: Slurm) -> None:
    number = submitted(slurm, seconds=0.5)
    until(lambda: checkpoints(slurm), 120, lambda: slurm.said(number))
    slurm.call("scancel", number)
    until(lambda: not slurm.call("squeue", "-h", "-t", "all", "-j", number, "-o", "%T").count("ING"), 30)
    assert slurm.job(number)["JobState"] == "CANCELLED", slurm.said(number)
