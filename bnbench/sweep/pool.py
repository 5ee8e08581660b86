"""The one world starter: ranks that start once and train run after run.

A single run, a sweep, torchrun and srun all come here. Where bnbench starts the ranks itself, this
process imports no torch: it hands runs to the ranks, shows progress, and outlives a rank that dies.
"""

from __future__ import annotations

import dataclasses
import os
import time
from multiprocessing.connection import wait

from bnbench.config import RunConfig
from bnbench.launch import place_given
from bnbench.sweep.attached import run_attached
from bnbench.sweep.names import apart
from bnbench.sweep.options import PoolOptions, Share
from bnbench.sweep.outcome import Outcome
from bnbench.sweep.plan import Plan
from bnbench.sweep.progress import SweepProgress
from bnbench.sweep.queue import Queue
from bnbench.sweep.restarts import broken_in, restarted
from bnbench.sweep.spawned import SpawnedWorld
from bnbench.sweep.stopping import StoppedError, StopRequest

DEFAULT = PoolOptions()
LISTENING_SECONDS = 0.5  # between two looks at whether to stop


def run_all(plan: Plan, options: PoolOptions = DEFAULT, stop: StopRequest | None = None) -> list[Outcome]:
    """Train what a plan has to do, in order; call it on every process of a world alike.

    Asked to stop by a signal, it stops after the runs that it is in have made a checkpoint ("preempted").
    """
    place = place_given()
    if place is not None:
        broken = broken_in(os.environ["SLURM_JOB_ID"], plan.todo) if restarted() else []
        gone = {outcome.config.folder for outcome in broken}
        todo = [run for run in plan.todo if run.folder not in gone]
        earlier = [dataclasses.replace(outcome, earlier=True) for outcome in broken]
        # Also for nothing: another rank, which has looked at the folder at a time of its own, may have something to do.
        return earlier + run_attached(
            place, plan.runs[0].trainer, todo, stop or StopRequest(), apart(plan.runs)
        )
    progress = SweepProgress(len(plan.todo), apart=apart(plan.runs))
    with stop or StopRequest() as stop, progress:
        pool = Pool(plan, options, stop, progress)
        try:
            return pool.run()
        finally:
            pool.end()


class Pool:
    """Worlds side by side that take their runs from one queue."""

    def __init__(self, plan: Plan, options: PoolOptions, stop: StopRequest, progress: SweepProgress) -> None:
        self.queue, self.options, self.stop, self.progress = Queue(plan.todo), options, stop, progress
        self.worlds: dict[Share, SpawnedWorld] = {}
        each = max((run.trainer.devices for run in plan.todo), default=1)
        self._shares = [Share(index, options.worlds, each) for index in range(options.worlds)]

    def run(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        told = False
        while True:
            if not self.stop.asked:
                self._hand_out()
            busy = [world for world in self.worlds.values() if world.busy]
            if self.stop.asked and busy and not told:
                told = True
                self.progress.say(self.stop.remark)
            if busy:
                ready = set(wait([pipe for world in busy for pipe in world.pipes], LISTENING_SECONDS))
                for world in busy:
                    if (outcome := world.hear(ready, self.stop, self.progress.update)) is not None:
                        outcomes += self._settled(outcome)
            elif self.stop.asked or self.queue.is_over():
                return outcomes + self.queue.outcomes
            else:
                time.sleep(LISTENING_SECONDS)  # what is left is in other hands

    def end(self) -> None:
        for share in [*self.worlds]:
            self._close(share)

    def _hand_out(self) -> None:
        for share in self._shares:
            world = self.worlds.get(share)
            if world is not None and world.busy:
                continue
            if world is not None and not world.alive:
                self._close(share)
            config = self.queue.take()
            if config is None:
                return
            try:
                with self.stop.at_once():
                    world = self._world(share, config)
            except StoppedError:
                self.queue.put_back(config)
                return
            self.progress.begin(config)
            world.begin(config)

    def _world(self, share: Share, config: RunConfig) -> SpawnedWorld:
        """The one that is there, or another for a run that wants other devices."""
        world = self.worlds.get(share)
        if world is not None and (self.options.fresh_world or not world.fits(config)):
            self._close(share)
        if share not in self.worlds:
            self.worlds[share] = SpawnedWorld(config, share)
        return self.worlds[share]

    def _close(self, share: Share) -> None:
        self.worlds.pop(share).close()

    def _settled(self, outcome: Outcome) -> list[Outcome]:
        if outcome.status == "busy":  # another process was first
            self.progress.drop(outcome.config)
            self.queue.put_back(outcome.config)
            return []
        self.progress.end(outcome.config, outcome.status)
        return [outcome]
