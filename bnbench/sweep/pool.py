"""The one world starter: ranks that start once and train run after run.

A single run, a sweep, torchrun and srun all come here. Where bnbench starts the ranks itself, this
process imports no torch: it hands runs to the ranks, shows progress, and outlives a rank that dies.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import shutil
import signal
import tempfile
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import Place, place_given
from bnbench.provenance import provenance
from bnbench.records import Record, digest, write_record
from bnbench.sweep.plan import Plan
from bnbench.sweep.progress import SweepProgress

PRELOAD = ["bnbench.sweep.quiet", "bnbench.training.run"]
BROKEN = ("gone", "oom", "failed")  # what ends a world, the likelier cause first
GRACE_SECONDS = 5.0  # for the other ranks, once one has failed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run: `status` of its record, or "refused" (a user's mistake; no record)."""

    config: RunConfig
    status: str
    error: str | None = None


def run_all(plan: Plan) -> list[Outcome]:
    """Train what a plan has to do, in order; call it on every process of a world alike."""
    place = place_given()
    if place is not None:
        return _run_attached(place, plan)
    outcomes: list[Outcome] = []
    waiting = list(plan.todo)
    with SweepProgress(len(waiting)) as progress:
        while waiting:
            with SpawnedWorld(waiting[0]) as world:
                while waiting and world.alive and world.fits(waiting[0]):
                    config = waiting.pop(0)
                    progress.begin(config)
                    outcome = world.run(config, progress)
                    progress.end(config, outcome.status)
                    outcomes.append(outcome)
    return outcomes


class SpawnedWorld:
    """Ranks on this host, forked from a server that has torch imported and has touched no GPU.

    Serves runs that want the same devices. After a failure it is not `alive`: the ranks may hang in
    different collectives, so they are ended and the next run gets a new world, which costs little.
    """

    def __init__(self, first: RunConfig) -> None:
        self.trainer = first.trainer
        self.alive = True
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = Path(tempfile.mkdtemp(prefix="bnbench-"))
        self._pipes: list[Connection] = []
        self._ranks: list[BaseProcess] = []
        try:
            self._start(context)
        except BaseException:  # Ctrl-C, most likely: starting takes seconds
            self.alive = False
            self.__exit__()
            raise

    def _start(self, context: Any) -> None:
        size = self.trainer.devices
        for rank in range(size):
            ours, theirs = context.Pipe()
            place = Place(rank, size, rank, size)
            arguments = (place, self.trainer.accelerator, str(self._folder / "store"), theirs)
            process = context.Process(target=_serve, args=arguments, name=f"bnbench rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._ranks.append(process)

    def fits(self, config: RunConfig) -> bool:
        mine, theirs = self.trainer, config.trainer
        return (mine.devices, mine.accelerator) == (theirs.devices, theirs.accelerator)

    def run(self, config: RunConfig, progress: SweepProgress) -> Outcome:
        """Hand a run to every rank and wait for all of them."""
        for pipe in self._pipes:
            try:
                pipe.send(config)
            except OSError:  # that rank is gone; the loop below finds out
                break
        answers: dict[int, tuple[str, str | None]] = {}
        pending: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        timeout: float | None = None
        while pending:
            ready: list[Any] = wait(list(pending), timeout)
            if not ready:
                break  # the others hang in a collective with the rank that failed
            for pipe in ready:
                rank = pending[pipe]
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    self._ranks[rank].join(GRACE_SECONDS)
                    kind, value = "gone", f"ended with exit code {self._ranks[rank].exitcode}"
                if kind == "progress":
                    progress.update(value)
                    continue
                del pending[pipe]
                answers[rank] = (kind, value)
                if kind in BROKEN:
                    timeout = GRACE_SECONDS
        broken = {rank: answer for rank, answer in answers.items() if answer[0] in BROKEN}
        if not broken:
            status, error = answers[0]
            return Outcome(config, status, error)
        self.alive = False
        # One rank's end makes the others' collectives fail: the cause speaks, not its consequences.
        rank = min(broken, key=lambda r: (BROKEN.index(broken[r][0]), r))
        kind, error = broken[rank]
        status = "oom" if kind == "oom" else "failed"
        write_failure(config, status, f"rank {rank}: {error}")
        return Outcome(config, status, error)

    def __enter__(self) -> SpawnedWorld:
        return self

    def __exit__(self, *exception: object) -> None:
        for pipe in self._pipes:
            try:
                if self.alive:
                    pipe.send(None)
            except OSError:
                continue
        for process in self._ranks:
            if self.alive and not any(exception):
                process.join(30)
            if process.is_alive():
                process.kill()
                process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def write_failure(config: RunConfig, status: str, error: str) -> None:
    """The record of a run whose ranks could not write it."""
    identity = config.identity()
    record = Record(
        schema=1,
        id=digest(identity),
        name=config.run_name,
        identity=identity,
        status=status,  # type: ignore[arg-type]
        config=dataclasses.asdict(config),
        metrics={},
        timings={},
        provenance=provenance(),
        error=error,
    )
    write_record(config.folder, record)


def _serve(place: Place, accelerator: str, store_path: str, pipe: Connection) -> None:
    """A rank's life: join the world, then train what comes down the pipe until None does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the starter, which ends its ranks
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
    while (config := pipe.recv()) is not None:
        pipe.send(_attempt(config, world, cache, pipe))
    world.leave()


def _attempt(config: RunConfig, world: Any, cache: Any, pipe: Connection) -> tuple[str, str | None]:
    import torch

    from bnbench.training.run import train_run
    from bnbench.training.world import SetupError

    def report(event: Any) -> None:
        if world.leads:
            pipe.send(("progress", event))

    try:
        return train_run(config, world, cache, report), None
    except SetupError as error:
        return "refused", str(error)
    except torch.OutOfMemoryError:
        return "oom", traceback.format_exc()
    except Exception:
        return "failed", traceback.format_exc()


def _run_attached(place: Place, plan: Plan) -> list[Outcome]:
    """This process is one rank of a world that torchrun or srun started: train here, with the others.

    A failure propagates: the other ranks may hang, and what started them ends them.
    """
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache
    from bnbench.training.world import SetupError, World

    world = World.join(place, plan.runs[0].trainer.accelerator)
    gc.freeze()
    todo = world.from_leader(plan.todo)  # each rank has looked at the folder at a time of its own
    cache, outcomes = DataCache(), []
    with SweepProgress(len(todo), quiet=not world.leads) as progress:
        for config in todo:
            progress.begin(config)
            try:
                outcome = Outcome(config, train_run(config, world, cache, progress.update))
            except SetupError as error:
                outcome = Outcome(config, "refused", str(error))
            except Exception:
                if world.leads:
                    write_failure(config, "failed", traceback.format_exc())
                raise
            progress.end(config, outcome.status)
            outcomes.append(outcome)
    world.leave()
    return outcomes
