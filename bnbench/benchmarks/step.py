"""A training step under bnbench against a bare torch loop: same model, data, optimizer and schedule.

Blocks of steps alternate in one process on one thread, so that a noisy machine hits all alike. `plain`
is Lightning without anything of ours in its loop: what remains to `bnbench` is what we log.
Its health signals come too rarely for blocks to tell their cost: they are taken at every other step of a run, and
what such a step takes more is spread over their interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.training.optim import build_optimizer
from bnbench.training.setup import DataCache, set_up, settle
from bnbench.training.trainer import build_trainer
from bnbench.training.world import World

from .block import WARMUP_STEPS, Stopwatch, train

BATCHES = (32, 2)
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
        "bare": lambda: _bare(config, world, cache),
        "plain": lambda: _plain(config, world, cache),
        "bnbench": lambda: train(config, world, cache).seconds,
    }
    for block in contenders.values():
        block()  # imports, allocator, W&B's service
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(pairs):
        for name, block in contenders.items():
            times[name].append(block())
    rows = {name: _summary(seconds, times["bare"], steps) for name, seconds in times.items()}
    rows["bnbench"]["health"] = _health(config, world, cache)
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


def _bare(config: RunConfig, world: World, cache: DataCache) -> float:
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


def _health(config: RunConfig, world: World, cache: DataCache) -> dict[str, Any]:
    """What a look at the health signals costs, in steps: CPU time, which a busy machine leaves alone, of the steps
    with one against that of their neighbours without."""
    every = config.measure.health_every
    assert every is not None
    often = dataclasses.replace(config, measure=dataclasses.replace(config.measure, health_every=2))
    watch = train(often, world, cache)
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


def _plain(config: RunConfig, world: World, cache: DataCache) -> float:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    setup, watch = set_up(config, world, cache), Stopwatch()
    module = _Plain(setup.module.model, setup.module.build_optimizer)
    build_trainer(config, world, None, [watch]).fit(module, setup.train_loader)
    return watch.seconds
