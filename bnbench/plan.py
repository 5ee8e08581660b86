"""`bnbench plan`: what `bnbench train` would do with the same words, and what it would take. No torch.

compose + check -> plan -> preview, by what earlier records tell; starts nothing and writes nothing. With --probe
ranks start, train a few steps of what no record tells of, and leave nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bnbench import train
from bnbench.config import RunConfig
from bnbench.folders import check_output, check_temporary
from bnbench.launch import check_world, place_given, speaks
from bnbench.sweep.plan import plan_single, plan_sweep
from bnbench.sweep.slurm import described, job_arrays

if TYPE_CHECKING:
    from bnbench.sweep.options import PoolOptions
    from bnbench.sweep.preview import Estimator, Preview

JSON, PROBE = "--json", "--probe"


def main(argv: Sequence[str]) -> int:
    """0, or 2 where train would refuse it: a combination is invalid, or other code has finished a run.

    ValueError for a mistake that the words make as a whole.
    """
    from bnbench.compose import at_home, read_request
    from bnbench.sweep.preview import Earlier, preview, read_earlier
    from bnbench.sweep.stopping import StoppedError, StopRequest

    words = at_home([word for word in argv if word not in (JSON, PROBE)])
    arguments = train.parse(words, "plan")
    if train.asks_hydra(arguments):
        return train.main(words)  # prints what is asked, and trains nothing
    request = read_request(arguments.overrides, arguments.multirun, arguments.config_dir, refuse=False)
    runs = request.runs
    plan = plan_sweep(runs) if request.multirun else plan_single(runs[0])
    for run in plan.runs:
        check_output(run.dir)
    if place_given() is None:
        check_temporary()
    if not speaks(place_given()):
        return 0
    pool, slurm = train.check_launcher(request.launcher, request.multirun)
    if slurm is not None and PROBE in argv:
        raise ValueError(
            "--probe would time this machine, and hydra/launcher=slurm trains on others: call it on a node of the "
            "cluster (srun --pty bash) without hydra/launcher=slurm, or leave it out"
        )
    arrays = [] if slurm is None else job_arrays(plan.todo, slurm)
    at_once = [min(len(array.jobs), slurm.array_parallelism) for array in arrays] if slurm else [pool.worlds]
    remarks = _worlds(plan.runs) if slurm is None else []
    if request.sweeper is not None:
        remarks.append(
            f"{request.sweeper} chooses its runs as it goes: only the one that it starts from is here"
        )
    earlier = read_earlier(plan.runs) if plan.todo else Earlier([], [])
    command = shlex.join(["bnbench", "train", *words])
    preview_by = partial(preview, request, plan, earlier, remarks, sum(at_once), command)
    if PROBE in argv and plan.todo:
        stop = StopRequest()
        try:
            with stop, stop.at_once():
                found = _probed(pool, preview_by)
        except StoppedError:
            print("bnbench plan: asked to stop; the probes leave nothing", file=sys.stderr)
            return stop.exit_code
    else:
        found = preview_by()
    if JSON in argv:
        jobs = None if slurm is None else [array.as_json() for array in arrays]
        print(json.dumps(found.as_json() | {"slurm": jobs}, indent=1, allow_nan=False))
    else:
        from bnbench.sweep.preview_table import show

        show(found)
        for line in described(arrays):
            print(line)
    return 2 if found.invalid or found.refusal is not None else 0


def _probed(pool: PoolOptions, preview_by: Callable[[Estimator], Preview]) -> Preview:
    from bnbench.sweep.options import Share
    from bnbench.sweep.probe import Prober, estimate_by_probes

    def say(line: str) -> None:
        print(f"probe: {line}", file=sys.stderr, flush=True)

    with Prober(say, Share(0, pool.worlds)) as prober:
        return preview_by(partial(estimate_by_probes, prober=prober))


def _worlds(runs: Sequence[RunConfig]) -> list[str]:
    """Why the command cannot be started here as it stands: no mistake, for it may be meant for another place."""
    said = []
    for run in runs:
        try:
            check_world(place_given(), run.trainer.devices, run.trainer.num_nodes)
        except ValueError as error:
            said.append(f"not to be started from here: {error}")
    return list(dict.fromkeys(said))
