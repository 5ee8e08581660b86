"""The starts of a SLURM job, which all have its number: what the earlier ones have left, and one more. No torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from bnbench.config import RunConfig
from bnbench.records import BROKEN, RECORD, read_record
from bnbench.sweep.outcome import Outcome


def restarted(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this job was requeued, rather than begun by somebody."""
    return "SLURM_JOB_ID" in env and int(env.get("SLURM_RESTART_COUNT", "0")) > 0


def broken_in(job: str | None, runs: Sequence[RunConfig]) -> list[Outcome]:
    """Those of the runs that broke in this job. Its next start leaves them: they would break again, and keep the
    others from their turn.
    """
    found = []
    for run in runs:
        try:
            record = read_record(run.folder / RECORD)
        except ValueError:  # none, or none that can be read
            continue
        if record.status in BROKEN and job is not None and record.provenance.get("slurm_job") == job:
            found.append(Outcome(run, record.status, record.error))
    return found


def start_again(why: str, code: int) -> int:
    """Have SLURM start this job once more, unless it has decided about it: was cancelled, or is requeued already.

    `code`: the exit code that its srun ended with. Returns that of its script.
    """
    number = own_number()
    if not _undecided(number):
        print(f"bnbench: {why}, and SLURM has decided about job {number}: left to it", flush=True)
        return code
    print(f"bnbench: {why}: requeued", flush=True)
    return subprocess.run(["scontrol", "requeue", number]).returncode


def own_number(env: Mapping[str, str] = os.environ) -> str:
    """This job, as scontrol is told of it: SLURM_JOB_ID of an array's last task is the number of the whole array."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def _undecided(number: str) -> bool:
    """Whether a job runs, or is at its time limit: KillWait is left then. scontrol requeues a cancelled one as well."""
    shown = subprocess.run(["scontrol", "-o", "show", "job", number], capture_output=True, text=True).stdout
    said = dict(re.findall(r"\b(JobState|Reason)=(\S+)", shown))
    return said.get("JobState") == "RUNNING" or said.get("Reason") == "TimeLimit"
