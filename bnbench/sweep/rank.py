"""A rank that bnbench started: it joins its world, and trains what comes down its pipe."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig, TrainerConfig
from bnbench.launch import Place
from bnbench.sweep.options import Share
from bnbench.sweep.short import Probe
from bnbench.sweep.stopping import leave_it_to_the_starter

GO = "go"  # comes down the pipe once all ranks are there
Answer = tuple[str, str | None]  # to a run: a status or why it has none, and what is to be said of it
STOP = "stop"  # what comes down the pipe in the midst of a run


def serve(place: Place, trainer: TrainerConfig, store_path: str, pipe: Connection, share: Share) -> None:
    """A rank's life: join the world, then train what comes down the pipe until None does."""
    leave_it_to_the_starter()
    try:
        pipe.recv()  # GO: a rank that is alone, its starter gone in the midst of starting, would wait for the others
    except EOFError:
        return
    me = multiprocessing.current_process()
    # The starter still ends it as the daemon that it was started as; here, it may have children to stream images.
    me.daemon = False
    # Their sockets go where the starter cleans up, however they end; multiprocessing has no public name for it.
    me._config["tempdir"] = str(Path(store_path).parent)  # type: ignore[attr-defined]
    from bnbench.training.setup import DataCache

    world, problem = _join(place, trainer, store_path, share)
    gc.freeze()  # what was imported stays: the collector need not walk it in every few steps
    cache = DataCache()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the starter is gone
        while (config := pipe.recv()) is not None:
            if config != STOP:  # which came when the run was over
                pipe.send(problem or _attempt(config, world, cache, pipe))
    if world is not None:
        world.leave()


def _join(place: Place, trainer: TrainerConfig, store_path: str, share: Share) -> tuple[Any, Answer | None]:
    """The world, or the answer to every run that is asked of it."""
    from bnbench.training.world import World, failure

    try:
        if share.of > 1:
            share.take(place.local_size, 0 if trainer.accelerator == "cpu" else _count_gpus())
        return World.join(place, trainer.accelerator, store_path, trainer.collective_timeout), None
    except ValueError as error:
        return None, ("refused", str(error))
    except Exception as error:
        return None, (failure(error), traceback.format_exc())


def _count_gpus() -> int:
    """Of this machine, counted in a child: counting may touch CUDA, and this process is then told of no change."""
    import torch

    child = os.fork()
    if child == 0:
        os._exit(min(torch.cuda.device_count(), 255))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _attempt(config: RunConfig, world: Any, cache: Any, pipe: Connection) -> Answer:
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import BusyError, train_run
    from bnbench.training.world import SetupError, failure

    def report(event: Any) -> None:
        if world.leads:
            with contextlib.suppress(BrokenPipeError):  # told by `pipe.poll` below
                pipe.send(("progress", event))

    try:
        # What comes down the pipe in a run is STOP; and it is readable too once the starter is gone.
        if isinstance(config, Probe):
            return _probe(config, world, cache, report, pipe)
        return train_run(config, world, cache, report, pipe.poll), None
    except PreemptedError as error:
        return "preempted", str(error)
    except SetupError as error:
        return "refused", str(error)
    except BusyError as error:
        return "busy", str(error)
    except Exception as error:
        return failure(error), traceback.format_exc()


def _probe(config: Probe, world: Any, cache: Any, report: Any, pipe: Connection) -> Answer:
    from bnbench.training.cut import CutCache
    from bnbench.training.run import train_run

    os.dup2(2, 1)  # whatever a user's code prints: standard output is the plan's alone
    cut = CutCache(cache, config.train_images, config.images)
    status = train_run(config, world, cut, report, pipe.poll)
    report({"whole": cut.whole})
    return status, None
