"""What the batch files (`slurm/*.sbatch`) ask before srun and after it. No torch.

python -m bnbench.sweep.batch check WORDS                    2 for wrong words, with one line
python -m bnbench.sweep.batch end CODE MAX_RESTARTS WORDS    the exit code of the script, or the job once more
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from bnbench import train
from bnbench.compose import Request, read_request
from bnbench.folders import check_output
from bnbench.last_words import TRY_LATER
from bnbench.launch import check_world, place_given
from bnbench.sweep.plan import Plan, plan_single, plan_sweep
from bnbench.sweep.restarts import broken_in, start_again
from bnbench.sweep.stopping import INTERRUPTED, STOPPED
from bnbench.wandb_run import check_given_id


def check(words: Sequence[str]) -> None:
    """Raise ValueError for what `bnbench train` would refuse on every rank of the step to come."""
    if train.asks_hydra(train.parse(words)):
        return
    os.environ |= {
        "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"],
        "SLURM_STEP_NUM_NODES": os.environ["SLURM_JOB_NUM_NODES"],
    }
    request, plan = _planned(words)
    train.check_launcher(request.launcher, request.multirun)
    if (problem := plan.refusal()) is not None:
        raise ValueError(problem)
    for run in plan.runs:
        check_world(place_given(), run.trainer.devices, run.trainer.num_nodes)
        check_output(run.dir)
    check_given_id(plan.runs)


def end(code: int, max_restarts: int, words: Sequence[str]) -> int:
    """After srun, by its exit code.

    0 is done, and so is 75: what is left is in other jobs' hands. 2: wrong words, or data that nobody can read, and
    nothing else to do. Else it was told to stop and has made a checkpoint (143), a run broke, or a rank died: once
    more, if there is anything to do beside what broke. Where all is finished it is done: a signal found srun ending. A
    node that dies, and preemption: SLURM requeues.
    """
    if code in (0, TRY_LATER):
        return 0
    if code == 2:
        return 2
    # Where time is short, at the time limit's end, there is no looking: runs are left where a stop is told of.
    if code not in (STOPPED, INTERRUPTED):
        todo = _planned(words)[1].todo
        broken = broken_in(os.environ["SLURM_JOB_ID"], todo)
        if len(broken) == len(todo):
            return 1 if broken else 0
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= max_restarts:
        print(
            f"bnbench: restarted {max_restarts} times, and srun ended with {code} again: the end. The same sbatch "
            "goes on.",
            file=sys.stderr,
        )
        return code
    return start_again(f"srun ended with {code}", code)


def _planned(words: Sequence[str]) -> tuple[Request, Plan]:
    arguments = train.parse(words)
    request = read_request(arguments.overrides, arguments.multirun, arguments.config_dir)
    return request, plan_sweep(request.runs) if request.multirun else plan_single(request.runs[0])


def main(argv: Sequence[str]) -> int:
    step, *rest = argv
    try:
        if step == "check":
            check(rest)
            return 0
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's, to all of a job at its time limit
        return end(int(rest[0]), int(rest[1]), rest[2:])
    except ValueError as error:
        print(f"bnbench train: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
