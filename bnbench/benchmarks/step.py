"""A training step under bnbench against a bare torch loop: same model, data, optimizer and schedule.

Blocks of steps alternate in one process on one thread, so that a noisy machine hits all alike. `plain`
is Lightning without anything of ours in its loop: what remains to `bnbench` is what we log.
Its health signals come too rarely for blocks to tell their cost: they are taken at every other step of a run, and
what such a step takes more is spread over their interval.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from bnbench import data
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.training.callbacks import Checkpoint, History, RunningStatistics, Series, TrainingCurve
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.optim import build_optimizer
from bnbench.training.setup import DataCache, set_up, settle
from bnbench.training.tracking import finish_tracking, start_tracking
from bnbench.training.trainer import build_trainer, measuring_callbacks
from bnbench.training.world import World

BATCHES = (32, 2)
WARMUP_STEPS = 10
HEALTH_TARGET = 0.02  # of a step, at the default interval
TARGETS = {32: 1.07, 2: 1.2}  # bnbench / bare, with everything that it logs


def measure(pairs: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of each contender, and their ratios to `bare` round by round."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World.join(Place(0, 1, 0, 1), "cpu", str(Path(folder) / "store"))
        try:
            for batch in BATCHES:
                results[str(batch)] = _measure_batch(batch, pairs, steps, world, folder)
        finally:
            world.leave()
    return {"pairs": pairs, "steps": steps, "threads": 1, "by_batch": results}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'images':>6}  {'contender':10} {'ms/step':>8}  ratio to bare: median [quartiles]  target"]
    for batch, rows in result["by_batch"].items():
        for name, row in rows.items():
            low, high = row["ratio_quartiles"]
            target = f"at most {TARGETS[int(batch)]}" if name == "bnbench" else ""
            ratio = f"{row['ratio_median']:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(f"{batch:>6}  {name:10} {row['ms_median']:8.3f}  {ratio:34} {target}")
        health = rows["bnbench"]["health"]
        lines.append(
            f"{batch:>6}  health signals: {health['extra']:.3f} of a step when taken, "
            f"{health['share']:.4f} spread over {health['every']} steps  at most {HEALTH_TARGET}"
        )
    return "\n".join(lines)


def _measure_batch(batch: int, pairs: int, steps: int, world: World, folder: str) -> dict[str, Any]:
    (config,) = compose_jobs(
        [
            f"global_batch={batch}", "trainer.devices=1", "trainer.threads=1", "trainer.accelerator=cpu",
            f"data.max_train={batch * (WARMUP_STEPS + steps)}", "data.max_test=1", "epochs=1",
            "optim.warmup_epochs=0", f"dir={folder}", "name=bench", "logger.mode=offline",
        ],
        multirun=False,
    )  # fmt: skip
    settle(config, world)
    cache = DataCache()
    contenders: dict[str, Callable[[], float]] = {
        "bare": lambda: _bare(config, world, cache, steps),
        "plain": lambda: _lightning(config, world, cache, steps, full=False),
        "bnbench": lambda: _lightning(config, world, cache, steps, full=True),
    }
    for block in contenders.values():
        block()  # imports, allocator, W&B's service
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(pairs):
        for name, block in contenders.items():
            times[name].append(block())
    rows = {name: _summary(seconds, times["bare"], steps) for name, seconds in times.items()}
    rows["bnbench"]["health"] = _health(config, world, cache, steps)
    return rows


def _summary(seconds: list[float], bare: list[float], steps: int) -> dict[str, Any]:
    ratios = sorted(mine / other for mine, other in zip(seconds, bare, strict=True))
    quarter = len(ratios) // 4
    return {
        "ms_median": 1000 * statistics.median(seconds) / steps,
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "ratio_range": [ratios[0], ratios[-1]],
    }


def _bare(config: RunConfig, world: World, cache: DataCache, steps: int) -> float:
    """The yardstick: what a user would write without any framework."""
    setup = set_up(config, world, cache)
    model, loader = setup.module.model, setup.train_loader
    optimizer, schedule = build_optimizer(model, config, loader.steps)
    model.train()
    started = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == WARMUP_STEPS:
            started = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


class _Stopwatch(Callback):
    """From the end of the warm-up to the end of the last step; last in line, so that it times the others."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0
        self.busy: list[float] = []  # seconds of CPU time, at the end of each step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARMUP_STEPS - 1:
            self.started = time.perf_counter()
        self.ended = time.perf_counter()
        self.busy.append(time.process_time())


def _health(config: RunConfig, world: World, cache: DataCache, steps: int) -> dict[str, Any]:
    """What a look at the health signals costs, in steps: CPU time, which a busy machine leaves alone, of the steps
    with one against that of their neighbours without."""
    every = config.measure.health_every
    assert every is not None
    often = dataclasses.replace(config, measure=dataclasses.replace(config.measure, health_every=2))
    watch = _Stopwatch()
    _lightning(often, world, cache, steps, full=True, watch=watch)
    seconds = [after - before for before, after in itertools.pairwise(watch.busy)][WARMUP_STEPS:]
    without, looked = (
        statistics.median(seconds[1::2]),
        statistics.median(seconds[::2]),
    )  # from the second step on
    extra = looked / without - 1
    return {"every": every, "extra": extra, "share": extra / every}


class _Plain(LightningModule):
    """Lightning with nothing of ours in its loop."""

    def __init__(self, model: torch.nn.Module, recipe: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.recipe(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _lightning(
    config: RunConfig,
    world: World,
    cache: DataCache,
    steps: int,
    full: bool,
    watch: _Stopwatch | None = None,
) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    setup = set_up(config, world, cache)
    watch = watch or _Stopwatch()
    if not full:
        module = _Plain(setup.module.model, setup.module.build_optimizer)
        trainer = build_trainer(config, world, None, [watch])
        trainer.fit(module, setup.train_loader)
        return watch.ended - watch.started
    config.folder.mkdir(parents=True, exist_ok=True)
    logger = start_tracking(config, config.folder)
    gc.freeze()  # as a rank does once it has imported everything
    try:
        curve = TrainingCurve(config, setup.train_loader.steps, lambda event: None)
        watching = measuring_callbacks(config, setup.train_loader, Series(config.folder))
        loader, checkpoints = data.WatchedLoader(setup.train_loader), CheckpointFolder(config.folder, "bench")
        checkpoint = Checkpoint(checkpoints, {}, loader, config, setup.train_loader.steps, lambda: False)
        callbacks = [
            History(config.folder, curve),
            RunningStatistics("mean"),
            *watching,
            curve,
            checkpoint,
            watch,
        ]
        trainer = build_trainer(config, world, logger, callbacks, checkpoints=checkpoints)
        trainer.fit(setup.module, loader, setup.test_loader)
    finally:
        gc.unfreeze()
        finish_tracking(logger, None)
    return watch.ended - watch.started
