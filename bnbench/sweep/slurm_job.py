"""A job of a submission, on the nodes: what its script does before srun, in each of its tasks, and after. No torch.

The script calls `begin` and `end`; submitit calls `train` in every task. A job is started again, by SLURM (preempted, a
node died) or by `end` (told to stop, a rank died), for as long as its starts bring anything new.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig, from_mapping
from bnbench.last_words import TRY_LATER
from bnbench.launch import check_world, place_given, speaks
from bnbench.lock import is_taken
from bnbench.records import RECORD, is_finished, read_record, write_atomic
from bnbench.sweep.plan import plan_sweep
from bnbench.sweep.restarts import BROKEN, broken_in, start_again
from bnbench.sweep.stopping import SIGNALS, STOPPED


@dataclass(frozen=True)
class Job:
    """One job of an array, by its place in the array's folder."""

    folder: Path
    index: int
    runs: list[RunConfig]
    max_restarts: int

    @classmethod
    def read(cls, folder: str, index: int) -> Job:
        known = json.loads((Path(folder) / "jobs.json").read_text())
        return cls(
            Path(folder), index, [from_mapping(run) for run in known["jobs"][index]], known["max_restarts"]
        )

    def todo(self) -> list[RunConfig]:
        """What another start would train: not what is finished, broke in this job or was refused."""
        left = [run for run in self.runs if not is_finished(run.folder)]
        gone = {outcome.config.folder for outcome in broken_in(os.environ.get("SLURM_JOB_ID"), left)}
        return [run for run in left if run.folder not in gone and run.folder.name not in self.refused()]

    def refused(self) -> list[str]:
        path = self._path("refused")
        return json.loads(path.read_text()) if path.exists() else []

    def refuse(self, names: list[str]) -> None:
        write_atomic(self._path("refused"), json.dumps(names).encode())

    def traces(self) -> list[str]:
        """What the starts so far have brought: records, refusals, and checkpoints that no other job can be making."""
        records = [str(run.folder) for run in self.runs if _has_ended(run)]
        free = [run for run in self.runs if not is_taken(run.folder)]
        checkpoints = [str(path) for run in free for path in run.folder.glob("checkpoints/*.ckpt")]
        return [*records, *self.refused(), *checkpoints]

    def starts_in_vain(self, count: bool) -> int:
        """Starts in a row, this one included, that found nothing new. `count`: this is one more start."""
        path, traces = self._path("starts"), set(self.traces())
        before: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"traces": list(traces), "in_vain": -1}
        )
        known = set(before["traces"])
        in_vain = before["in_vain"] + 1 if traces <= known else 0
        if count:
            write_atomic(path, json.dumps({"traces": sorted(traces | known), "in_vain": in_vain}).encode())
        return in_vain

    def give_up(self) -> str:
        names = ", ".join(run.run_name for run in self.todo())
        return (
            f"bnbench: hydra.launcher.max_restarts={self.max_restarts} start(s) in a row brought neither a checkpoint "
            f"nor a record of {names}: this job ends here. What its logs in {self.folder} say, mend; the same command "
            "submits it again and goes on"
        )

    def _path(self, what: str) -> Path:
        return self.folder / f"{what}-{self.index}.json"


def begin(folder: str) -> int:
    """0 if this start is worth it."""
    job = Job.read(folder, _index())
    if job.starts_in_vain(count=True) > job.max_restarts:
        print(job.give_up(), file=sys.stderr, flush=True)
        return 1
    return 0


def train(folder: str, index: int) -> dict[str, str]:
    """Every task is a rank. The status of each run; SystemExit with 143 if it was told to stop, after a checkpoint."""
    # Instead of submitit's, which start over. After the first, a signal is nothing while a checkpoint is written, but
    # for SLURM's last: ranks that outlive it leave the script no time before KILL to start the job again.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL if each == signal.SIGTERM else signal.SIG_IGN)
    from bnbench.sweep.pool import run_all

    job = Job.read(folder, index)
    place = place_given()
    plan = plan_sweep(job.runs)
    plan.todo = job.todo()
    if not plan.todo:
        return {run.run_name: "finished" for run in job.runs}
    for run in plan.todo:
        check_world(place, run.trainer.devices, run.trainer.num_nodes)
    outcomes = run_all(plan)
    statuses = {outcome.config.run_name: outcome.status for outcome in outcomes}
    if speaks(place):
        for outcome in outcomes:
            if outcome.status in (*BROKEN, "refused", "preempted"):
                print(f"bnbench: {outcome.config.run_name}: {outcome.status}: {outcome.error}", flush=True)
        refused = [outcome.config.folder.name for outcome in outcomes if outcome.status == "refused"]
        if refused:
            job.refuse([*job.refused(), *refused])
    if "preempted" in statuses.values() or len(outcomes) < len(plan.todo):
        raise SystemExit(STOPPED)
    if "elsewhere" in statuses.values():
        raise SystemExit(TRY_LATER)
    return statuses


def end(folder: str, code: int) -> int:
    """After srun: done, done with failures, or once more. The exit code of the job's script."""
    job = Job.read(folder, _index())
    left = job.todo()
    if not left:
        return 0 if all(is_finished(run.folder) for run in job.runs) else 1
    if code == TRY_LATER:
        print(f"bnbench: {len(left)} run(s) are being trained by another job: left to it", flush=True)
        return 0
    if job.starts_in_vain(count=False) > job.max_restarts:
        print(job.give_up(), file=sys.stderr, flush=True)
        return 1
    why = "told to stop" if code == STOPPED else f"srun ended with {code}"
    return start_again(f"{why}, {len(left)} run(s) to go", code)


def _has_ended(run: RunConfig) -> bool:
    """Whether this job has brought the run to an end, good or bad."""
    try:
        record = read_record(run.folder / RECORD)
    except ValueError:
        return False
    mine = record.provenance.get("slurm_job") == os.environ.get("SLURM_JOB_ID")
    return mine and record.status != "preempted"


def _index() -> int:
    return int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's, to all of a job at its time limit
    step, place = sys.argv[1:3]
    sys.exit(begin(place) if step == "begin" else end(place, int(sys.argv[3])))
