"""A world that torchrun or srun started: this process is one of its ranks, and trains a plan with the others."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig, TrainerConfig
from bnbench.launch import Place
from bnbench.records import RECORD
from bnbench.sweep.outcome import Outcome, write_failure
from bnbench.sweep.progress import SweepProgress
from bnbench.sweep.queue import Queue
from bnbench.sweep.stopping import StopRequest, deadline

LOOKING_SECONDS = 0.5


def run_attached(
    place: Place,
    trainer: TrainerConfig,
    todo: Sequence[RunConfig],
    stop: StopRequest,
    apart: Mapping[Path, Sequence[str]],
) -> list[Outcome]:
    """Call it on every rank, of the world that `trainer` asks for; `apart` as in `SweepProgress`.

    A failure propagates: the other ranks may hang, and what started them ends them.
    """
    with stop:
        # Ctrl-C reaches the whole group, and what started the ranks asks them by a signal of its own.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _run(place, trainer, todo, stop, apart)


def _run(
    place: Place,
    trainer: TrainerConfig,
    todo: Sequence[RunConfig],
    stop: StopRequest,
    apart: Mapping[Path, Sequence[str]],
) -> list[Outcome]:
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import BusyError, train_run
    from bnbench.training.setup import DataCache
    from bnbench.training.world import SetupError, World, failure, has_lost_a_peer

    world = World.join(place, trainer.accelerator, timeout=trainer.collective_timeout)
    gc.freeze()
    queue = Queue(todo)  # the leader's decides: each rank has looked at the folder at a time of its own
    cache, outcomes = DataCache(), []
    with SweepProgress(len(todo), quiet=not world.leads, apart=apart) as progress:
        for config in _handed_out(queue, world, stop):
            progress.begin(config)
            begun = time.time()
            over = partial(_over, stop, deadline(config))
            try:
                outcome = Outcome(
                    config, train_run(config, world, cache, partial(progress.update, config), over)
                )
            except PreemptedError as error:
                ended = "preempted" if _asked(world, stop) else "timeout"
                outcome = Outcome(config, ended, str(error))
                if world.leads:
                    outcome = write_failure(config, ended, str(error))
            except SetupError as error:
                outcome = Outcome(config, "refused", str(error))
            except BusyError:
                progress.drop(config)
                queue.put_back(config)
                continue
            except Exception as error:
                if not (has_lost_a_peer(error) and _has_a_witness(place, config, begun)):
                    locked = world.locked == config.folder
                    write_failure(config, failure(error), traceback.format_exc(), locked=locked)
                raise
            progress.end(config, outcome.status)
            outcomes.append(outcome)
    elsewhere = world.from_leader(queue.outcomes)
    world.leave()
    gc.unfreeze()  # or extension modules report at the interpreter's end what was never let go
    return outcomes + elsewhere


def _handed_out(queue: Queue, world: Any, stop: StopRequest) -> Iterator[RunConfig]:
    """The runs that the leader's queue gives, on every rank, until it is over or a rank was asked to stop."""
    while not _asked(world, stop):
        config = queue.take() if world.leads else None
        over = config is None and world.leads and queue.is_over()
        config, over = world.from_leader((config, over))
        if config is not None:
            yield config
        elif over:
            return
        else:
            time.sleep(LOOKING_SECONDS)


def _asked(world: Any, stop: StopRequest) -> bool:
    """Whether any rank was asked to stop, agreed on: then each was, so that the one that tells how it ended knows."""
    agreed: bool = world.any_of(stop.asked)
    if agreed:
        stop.asked = True
    return agreed


def _has_a_witness(place: Place, config: RunConfig, begun: float) -> bool:
    """Whether a rank that has lost another need not tell: that one has, or SLURM starts the job again where it was."""
    path = config.folder / RECORD
    return place.origin == "srun" or (path.exists() and path.stat().st_mtime >= begun)


def _over(stop: StopRequest, until: float) -> bool:
    return stop.asked or time.monotonic() > until
