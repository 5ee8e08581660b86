"""A world that torchrun or srun started: this process is one of its ranks, and trains a plan with the others."""

from __future__ import annotations

import gc
import time
import traceback
from functools import partial
from typing import Any

from bnbench.launch import Place
from bnbench.sweep.outcome import Outcome, write_failure
from bnbench.sweep.plan import Plan
from bnbench.sweep.progress import SweepProgress
from bnbench.sweep.stopping import StopRequest, deadline


def run_attached(place: Place, plan: Plan, stop: StopRequest) -> list[Outcome]:
    """Call it on every rank. A failure propagates: the other ranks may hang, and what started them ends them."""
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache
    from bnbench.training.world import SetupError, World

    world = World.join(place, plan.runs[0].trainer.accelerator)
    gc.freeze()
    todo = world.from_leader(plan.todo)  # each rank has looked at the folder at a time of its own
    cache, outcomes = DataCache(), []
    with SweepProgress(len(todo), quiet=not world.leads) as progress:
        for config in todo:
            if world.any_of(stop.asked):
                break
            progress.begin(config)
            over = partial(_over, stop, deadline(config))
            try:
                outcome = Outcome(config, train_run(config, world, cache, progress.update, over))
            except PreemptedError as error:
                ended: Any = "preempted" if world.any_of(stop.asked) else "timeout"
                outcome = Outcome(config, ended, str(error))
                if world.leads:
                    write_failure(config, ended, str(error))
            except SetupError as error:
                outcome = Outcome(config, "refused", str(error))
            except Exception:
                if world.leads:
                    write_failure(config, "failed", traceback.format_exc())
                raise
            progress.end(config, outcome.status)
            outcomes.append(outcome)
            if outcome.status == "preempted":
                break
    world.leave()
    return outcomes


def _over(stop: StopRequest, until: float) -> bool:
    return stop.asked or time.monotonic() > until
