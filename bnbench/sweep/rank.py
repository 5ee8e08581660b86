"""A rank that bnbench started: it joins its world, and trains what comes down its pipe."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.sweep.stopping import leave_it_to_the_starter

GO = "go"  # comes down the pipe once all ranks are there
STOP = "stop"  # what comes down the pipe in the midst of a run


def serve(place: Place, accelerator: str, store_path: str, pipe: Connection) -> None:
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
    from bnbench.training.world import World

    try:
        world = World.join(place, accelerator, store_path)
    except ValueError as error:
        while pipe.recv() is not None:
            pipe.send(("refused", str(error)))
        return
    gc.freeze()  # what was imported stays: the collector need not walk it in every few steps
    cache = DataCache()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the starter is gone
        while (config := pipe.recv()) is not None:
            if config != STOP:  # which came when the run was over
                pipe.send(_attempt(config, world, cache, pipe))
    world.leave()


def _attempt(config: RunConfig, world: Any, cache: Any, pipe: Connection) -> tuple[str, str | None]:
    import torch

    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import train_run
    from bnbench.training.world import SetupError

    def report(event: Any) -> None:
        if world.leads:
            with contextlib.suppress(BrokenPipeError):  # told by `pipe.poll` below
                pipe.send(("progress", event))

    try:
        # What comes down the pipe in a run is STOP; and it is readable too once the starter is gone.
        return train_run(config, world, cache, report, pipe.poll), None
    except PreemptedError as error:
        return "preempted", str(error)
    except SetupError as error:
        return "refused", str(error)
    except torch.OutOfMemoryError:
        return "oom", traceback.format_exc()
    except Exception:
        return "failed", traceback.format_exc()
