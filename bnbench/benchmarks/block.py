"""A block of training steps as a run takes them, timed from the end of its warm-up."""

from __future__ import annotations

import gc
import logging
import time
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
    """From the end of the warm-up to the end of the last step; last in line, so that it times the others."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0
        self.busy: list[float] = []  # seconds of CPU time, at the end of each step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda" and batch_idx in (
            WARMUP_STEPS - 1,
            trainer.num_training_batches - 1,
        ):
            torch.cuda.synchronize(pl_module.device)  # the host is ahead of it
        self.step_ended(batch_idx)

    def step_ended(self, step: int) -> None:
        """`step` counts from 0."""
        if step == WARMUP_STEPS - 1:
            self.started = time.perf_counter()
        self.ended = time.perf_counter()
        self.busy.append(time.process_time())

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def cpu_seconds(self) -> float:
        return self.busy[-1] - self.busy[WARMUP_STEPS - 1]


def train(config: RunConfig, world: World, cache: DataCache) -> Stopwatch:
    """One epoch with all that a run has in its loop. Call it on every rank."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    setup, watch = set_up(config, world, cache), Stopwatch()
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
