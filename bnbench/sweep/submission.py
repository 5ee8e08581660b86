"""What hydra/launcher=slurm says and does: submit, leave what is queued already, and stay if asked. No torch."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnbench.config import RunConfig
from bnbench.config.slurm import SlurmConfig
from bnbench.records import RECORD, read_record
from bnbench.sweep.outcome import Outcome
from bnbench.sweep.plan import Plan
from bnbench.sweep.slurm import FOLDER, SUBMITTED, submit, told

LOOKING_SECONDS = (2.0, 60.0)  # between two questions to SLURM: at first, and in the end
ASKING_SECONDS = 60


def hand_over(plan: Plan, options: SlurmConfig) -> tuple[dict[Path, str], list[Outcome] | None]:
    """The job of each run by its folder; and what came of the runs, if that is known: none is to do, or `wait`."""
    if not plan.todo:
        return {}, []
    queued = _queued(plan.todo)
    todo = [run for run in plan.todo if run.folder not in queued]
    if queued:
        _say(f"{len(queued)} run(s) are in SLURM's hands already: {_numbers(queued.values())}")
    jobs = dict(queued)
    if todo:
        arrays, submitted = submit(todo, options)
        jobs |= submitted
        for line in told(arrays):
            _say(line)
        for array in arrays:
            _say(f"  logs:  {array.folder}")
    numbers = _numbers(jobs.values())
    _say(f"  watch: squeue --jobs {numbers}")
    _say(f"  end:   scancel {numbers.replace(',', ' ')}")
    if not options.wait:
        _say(f"  then:  bnbench report {plan.todo[0].dir}")
        return jobs, None
    try:
        _stay(set(jobs.values()))
    except KeyboardInterrupt:
        _say("Waiting no longer: the jobs go on.")
        return jobs, None
    return jobs, _outcomes(plan.todo)


def _queued(todo: Sequence[RunConfig]) -> dict[Path, str]:
    """Runs that an earlier submission of this folder has in the queue, with their jobs. ValueError if that cannot be
    known: they would be submitted twice.
    """
    known: dict[Path, str] = {}
    wanted = {str(run.folder.absolute()): run.folder for run in todo}
    for folder in dict.fromkeys(run.dir for run in todo):
        for path in Path(folder).glob(f"{FOLDER}/*/{SUBMITTED}"):
            known |= {wanted[run]: job for run, job in json.loads(path.read_text()).items() if run in wanted}
    active = active_jobs(set(known.values())) if known else set()
    if active is None:
        raise ValueError(
            f"SLURM does not answer: whether it still has jobs {_numbers(known.values())} of an earlier submission is "
            "not known, and nothing is submitted twice; try again once squeue answers"
        )
    return {run: job for run, job in known.items() if job in active}


def active_jobs(jobs: set[str]) -> set[str] | None:
    """Those that SLURM has not ended; None if it cannot be asked now."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--jobs", _numbers(jobs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:  # which it says once it has forgotten them
        return None
    return jobs & set(done.stdout.split())


def _stay(jobs: set[str]) -> None:
    """Until no job is left. By squeue alone: a cluster without accounting has no sacct that would know."""
    pause, longest = LOOKING_SECONDS
    left, ended = jobs, 0
    while ended < 2:  # a job that is being requeued may be out of sight for a moment
        time.sleep(pause)
        active = active_jobs(jobs)
        if active is None:
            continue
        if len(active) < len(left):
            _say(f"{len(jobs) - len(active)} of {len(jobs)} job(s) have ended")
            pause = LOOKING_SECONDS[0]
        left, ended = active, 0 if active else ended + 1
        pause = min(1.5 * pause, longest)


def _outcomes(todo: Sequence[RunConfig]) -> list[Outcome]:
    """By the records, the only witness of what jobs did."""
    found = []
    for run in todo:
        try:
            record = read_record(run.folder / RECORD)
        except ValueError:
            continue
        found.append(Outcome(run, record.status, record.error))
    return found


def _numbers(jobs: Iterable[str]) -> str:
    """Jobs of an array by their array's number."""
    return ",".join(sorted({job.partition("_")[0] for job in jobs}))


def _say(line: str) -> None:
    print(line, flush=True)
