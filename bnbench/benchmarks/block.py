"""A block of training steps as a run takes them, timed from the end of its warm-up."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench import data
from bnbench.config import RunConfig
from bnbench.training.callbacks import Checkpoint, History, RunningStatistics, Series, Speed, TrainingCurve
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.setup import DataCache, set_up
from bnbench.training.tracking import finish_tracking, start_tracking
from bnbench.training.trainer import build_trainer, measuring_callbacks
from bnbench.training.world import World

WARMUP_STEPS = 10


class Stopwatch(Callback):
    """The timed steps, from the end of the warm-up; last in line, so that it times the others.

    `pass_on`: called, and not timed, at the end of the warm-up and of every `turn` steps from there on.
    """

    def __init__(self, turn: int | None = None, pass_on: Callable[[], None] | None = None) -> None:
        self.seconds = self.cpu_seconds = 0.0  # of this process, all its threads
        self.busy: list[float] = []  # seconds of CPU time, at the end of each step
        self._turn, self._pass_on = turn, pass_on
        self._wall = self._cpu = 0.0  # when what is timed next began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends = batch_idx in (WARMUP_STEPS - 1, trainer.num_training_batches - 1)
        if pl_module.device.type == "cuda" and (ends or self._turn_ends(batch_idx)):
            torch.cuda.synchronize(pl_module.device)  # the host is ahead of it
        self.step_ended(batch_idx)

    def step_ended(self, step: int) -> None:
        """`step` counts from 0."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.busy.append(cpu)
        if step >= WARMUP_STEPS:
            self.seconds += wall - self._wall
            self.cpu_seconds += cpu - self._cpu
        if self._pass_on is not None and self._turn_ends(step):
            self._pass_on()
            wall, cpu = time.perf_counter(), time.process_time()
        self._wall, self._cpu = wall, cpu

    def _turn_ends(self, step: int) -> bool:
        timed = step + 1 - WARMUP_STEPS
        return self._turn is not None and timed >= 0 and timed % self._turn == 0


def train(config: RunConfig, world: World, cache: DataCache, watch: Stopwatch | None = None) -> Stopwatch:
    """One epoch with all that a run has in its loop. Call it on every rank."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    setup, watch = set_up(config, world, cache), watch or Stopwatch()
    folder = config.folder if world.leads else None
    config.folder.mkdir(parents=True, exist_ok=True)
    logger = start_tracking(config, config.folder) if world.leads else None
    gc.freeze()  # as a rank does once it has imported everything
    try:
        curve = TrainingCurve(config, setup.train_loader.steps, lambda event: None, folder)
        watching = measuring_callbacks(config, setup.train_loader, Series(folder))
        loader, checkpoints = data.WatchedLoader(setup.train_loader), CheckpointFolder(config.folder, "bench")
        speed = [] if config.measure.speed_every is None else [Speed(config, world, loader)]
        checkpoint = Checkpoint(checkpoints, {}, loader, config, setup.train_loader.steps, lambda: False)
        first = [History(folder, curve), RunningStatistics("mean"), *speed]
        callbacks = [*first, *watching, curve, checkpoint, watch]
        trainer = build_trainer(config, world, logger, callbacks, checkpoints=checkpoints)
        trainer.fit(setup.module, loader, setup.test_loader)
    finally:
        gc.unfreeze()
        finish_tracking(logger, None)
    return watch
