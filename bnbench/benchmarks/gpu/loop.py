"""Part 2, the loop: a step of ResNet-50 as bnbench takes it against a bare torch loop, blocks in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch
from torch.nn import functional as F

from bnbench.benchmarks.block import WARMUP_STEPS, train
from bnbench.benchmarks.timing import median_interval
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.training.optim import build_optimizer
from bnbench.training.setup import DataCache, set_up, settle
from bnbench.training.world import World

from .sizes import Sizes

TARGET = 1.02


def measure(sizes: Sizes, world: World) -> dict[str, Any]:
    """By norm: milliseconds a step of both, and their ratio round by round."""
    cache, found = DataCache(), dict[str, Any]()
    images = sizes.images * (WARMUP_STEPS + sizes.steps)
    gpu = (
        ("trainer.cudnn_benchmark=true", "trainer.deterministic=false")
        if sizes.on_gpu
        else ("trainer.threads=1",)
    )
    with tempfile.TemporaryDirectory() as folder:
        for norm in sizes.through_lightning:
            (config,) = compose_jobs(
                [
                    "model=resnet50", f"norm={norm}", "data=synthetic", f"data.image_size={sizes.pixels}",
                    "data.num_classes=1000", f"data.train_images={images}", "data.test_images=1",
                    f"global_batch={sizes.images}", "trainer.devices=1", *gpu, "epochs=1", "optim.warmup_epochs=0",
                    f"trainer.accelerator={'gpu' if sizes.on_gpu else 'cpu'}", f"trainer.precision={sizes.precision}",
                    "trainer.channels_last=true", "logger=none", f"dir={folder}", "name=loop",
                ],
                multirun=False,
            )  # fmt: skip
            settle(config, world)
            blocks = {
                "bare": lambda c=config: _bare(c, world, cache),
                "bnbench": lambda c=config: train(c, world, cache).seconds,
            }
            times: dict[str, list[float]] = {name: [] for name in blocks}
            for turn in range(sizes.blocks):
                for name in list(blocks)[:: 1 if turn % 2 else -1]:
                    times[name].append(1000 * blocks[name]() / sizes.steps)
            ratios = [mine / other for mine, other in zip(times["bnbench"], times["bare"], strict=True)]
            low, high, confidence = median_interval(ratios)
            found[norm] = {
                **{f"{name}_ms": statistics.median(each) for name, each in times.items()},
                "ratio": statistics.median(ratios),
                "ratio_interval": [low, high],
                "ratio_interval_confidence": confidence,
                "target": TARGET,
            }
    return found


def table(result: dict[str, Any]) -> str:
    lines = []
    for norm, row in result.items():
        low, high = row["ratio_interval"]
        lines.append(
            f"{norm}: bare {row['bare_ms']:.2f} ms, bnbench {row['bnbench_ms']:.2f} ms, ratio {row['ratio']:.3f} "
            f"[{low:.3f}, {high:.3f}] ({row['ratio_interval_confidence']:.0%}), at most {row['target']}"
        )
    return "\n".join(lines)


def _bare(config: RunConfig, world: World, cache: DataCache) -> float:
    """Seconds of the timed steps: the same images, network, optimizer and schedule, and nothing else."""
    setup = set_up(config, world, cache)
    device, loader = world.device, setup.train_loader
    model = setup.module.model.to(device).train()
    optimizer, schedule = build_optimizer(model, config, loader.steps)
    started = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == WARMUP_STEPS:
            _wait(device)
            started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
