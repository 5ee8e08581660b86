"""The one world starter: ranks that start once and train run after run.

A single run, a sweep, torchrun and srun all come here. Where bnbench starts the ranks itself, this
process imports no torch: it hands runs to the ranks, shows progress, and outlives a rank that dies.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import shutil
import tempfile
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import Place, place_given
from bnbench.sweep.attached import run_attached
from bnbench.sweep.outcome import Outcome, write_failure
from bnbench.sweep.plan import Plan
from bnbench.sweep.progress import SweepProgress
from bnbench.sweep.rank import GO, STOP, serve
from bnbench.sweep.stopping import StoppedError, StopRequest, deadline

PRELOAD = ["bnbench.sweep.quiet", "bnbench.training.run"]
BROKEN = ("gone", "oom", "failed")  # what ends a world, the likelier cause first
GRACE_SECONDS = 5.0  # for the other ranks, once one has failed
SAVING_SECONDS = 600.0  # for a window and a checkpoint once a run has had its time: then it hangs
LISTENING_SECONDS = 0.5  # between two looks at whether to stop


def run_all(plan: Plan) -> list[Outcome]:
    """Train what a plan has to do, in order; call it on every process of a world alike.

    Asked to stop by a signal, it stops after the run that it is in has made a checkpoint ("preempted").
    """
    place = place_given()
    with StopRequest() as stop:
        if place is not None:
            return run_attached(place, plan, stop)
        return _run_spawned(plan, stop)


def _run_spawned(plan: Plan, stop: StopRequest) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting = list(plan.todo)
    with contextlib.suppress(StoppedError), SweepProgress(len(waiting)) as progress:
        while waiting:
            with stop.at_once():
                world = SpawnedWorld(waiting[0])
            with world:
                while waiting and not stop.asked and world.alive and world.fits(waiting[0]):
                    config = waiting.pop(0)
                    progress.begin(config)
                    outcome = world.run(config, progress, stop)
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
            process = context.Process(target=serve, args=arguments, name=f"bnbench rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._ranks.append(process)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a rank that is gone: the first run finds out
                pipe.send(GO)

    def fits(self, config: RunConfig) -> bool:
        mine, theirs = self.trainer, config.trainer
        return (mine.devices, mine.accelerator) == (theirs.devices, theirs.accelerator)

    def run(self, config: RunConfig, progress: SweepProgress, stop: StopRequest) -> Outcome:
        """Hand a run to every rank and wait for all of them."""
        until = deadline(config)
        for pipe in self._pipes:
            try:
                pipe.send(config)
            except OSError:  # that rank is gone; the loop below finds out
                break
        answers: dict[int, tuple[str, str | None]] = {}
        pending: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        told, patience = "", math.inf  # told: what its end will be called
        begun = False
        while pending:
            ready: list[Any] = wait(list(pending), LISTENING_SECONDS)
            now = time.monotonic()
            if now > patience:
                break  # they hang, in a collective with a rank that failed or by themselves
            if not told and (stop.asked or now > until):
                told = "preempted" if stop.asked else "timeout"
                if stop.asked and not begun:
                    break  # its ranks import, or set up: there is nothing to save
                self._tell_to_stop()
                if told == "timeout":
                    patience = now + SAVING_SECONDS
            for pipe in ready:
                rank = pending[pipe]
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    self._ranks[rank].join(GRACE_SECONDS)
                    kind, value = "gone", f"ended with exit code {self._ranks[rank].exitcode}"
                if kind == "progress":
                    begun = True
                    progress.update(value)
                    continue
                del pending[pipe]
                answers[rank] = (kind, value)
                if kind in BROKEN:
                    patience = time.monotonic() + GRACE_SECONDS
        broken = {rank: answer for rank, answer in answers.items() if answer[0] in BROKEN}
        if not broken:
            self.alive = not pending
            silent = (
                f"its ranks did not answer for {SAVING_SECONDS:g} s" if begun else "before its first steps"
            )
            status, error = answers.get(0, ("preempted", f"asked to stop: {silent}"))
            if status == "preempted":
                if told == "timeout":
                    limit = config.trainer.time_limit_minutes
                    status, error = told, f"trainer.time_limit_minutes={limit:g} are over: {error}"
                write_failure(config, status, error or "")
            return Outcome(config, status, error)
        self.alive = False
        # One rank's end makes the others' collectives fail: the cause speaks, not its consequences.
        rank = min(broken, key=lambda r: (BROKEN.index(broken[r][0]), r))
        kind, error = broken[rank]
        status = "oom" if kind == "oom" else "failed"
        write_failure(config, status, f"rank {rank}: {error}")
        return Outcome(config, status, error)

    def _tell_to_stop(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(STOP)

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
