"""Part 4: ResNet-20 on images of CIFAR's size by norm and NBS, as bnbench trains it; the whole grid's time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnbench.benchmarks.block import WARMUP_STEPS, train
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.training.setup import DataCache, settle
from bnbench.training.world import World

from .sizes import Sizes

SEEDS, EPOCHS, TRAIN_IMAGES = 3, 30, 50_000
TARGET_MINUTES = 10


def words(sizes: Sizes, *more: str) -> list[str]:
    """A run of the grid, in the words of `bnbench train`."""
    gpu = ["trainer.accelerator=cpu", "trainer.threads=1"]
    if sizes.on_gpu:
        gpu = ["trainer.accelerator=gpu", "trainer.cudnn_benchmark=true", "trainer.deterministic=false"]
    return [
        f"model={sizes.grid_model}", "data=synthetic", "data.image_size=32", "data.num_classes=10",
        "data.augment=crop_flip", f"data.train_images={sizes.grid_images}", f"data.test_images={sizes.grid_tests}",
        f"global_batch={sizes.grid_batch}", "trainer.devices=1", *gpu, f"trainer.precision={sizes.precision}",
        "trainer.channels_last=true", "logger=none", "epochs=1", "optim.warmup_epochs=0", *more,
    ]  # fmt: skip


def measure(sizes: Sizes, world: World, is_late: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Seconds by cell, of its start and its steps; and what the whole grid would take one run after another."""
    images = sizes.grid_batch * (WARMUP_STEPS + sizes.grid_steps)
    cells: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"cells": cells, "left_out": []}
    cache = DataCache()
    with tempfile.TemporaryDirectory() as folder:
        for norm in sizes.grid_norms:
            for nbs in sizes.grid_nbs:
                name = f"{norm}, NBS {nbs}"
                if is_late():
                    found["left_out"].append(name)
                    continue
                if norm == "gn" and nbs != sizes.grid_nbs[0]:
                    continue  # it has no NBS: one cell
                more = [
                    f"norm={norm}",
                    f"data.max_train={images}",
                    f"dir={folder}",
                    "name=grid",
                    *graphs(sizes),
                ]
                more += [] if norm == "gn" else [f"norm.batch_size={nbs}"]
                cells[name if norm != "gn" else "gn"] = _cell(
                    _compose(words(sizes, *more)), world, cache, sizes
                )
        if sizes.on_gpu:
            more = ["norm=bn", f"data.max_train={images}", f"dir={folder}", "name=grid"]
            found["launched"] = _cell(_compose(words(sizes, *more)), world, cache, sizes)
    found["grid"] = projected(cells, sizes)
    if not is_late():
        found["together"] = side = together(sizes)
        alone = cells.get(f"bn, NBS {sizes.grid_batch}")
        if alone is not None:
            found["grid"]["minutes_together"] = (
                found["grid"]["minutes"] * alone["images_per_s"] / side["images_per_s"]
            )
    return found


def graphs(sizes: Sizes) -> tuple[str, ...]:
    return ("trainer.cuda_graphs=true",) if sizes.on_gpu else ()


def together(sizes: Sizes) -> dict[str, Any]:
    """`sizes.worlds` processes that train a cell each at the same time: images/s of all of them."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        barrier = mp.get_context("spawn").Barrier(sizes.worlds)
        mp.start_processes(
            _beside_others, (sizes, folder, barrier), nprocs=sizes.worlds, start_method="spawn"
        )
        seconds = [float((Path(folder) / f"{n}.txt").read_text()) for n in range(sizes.worlds)]
    images = sizes.worlds * sizes.grid_batch * sizes.grid_steps
    return {"worlds": sizes.worlds, "seconds": seconds, "images_per_s": images / max(seconds)}


def _beside_others(index: int, sizes: Sizes, folder: str, barrier: Any) -> None:
    own = Path(folder) / str(index)
    own.mkdir()
    world = World.join(Place(0, 1, 0, 1), "gpu" if sizes.on_gpu else "cpu", str(own / "store"))
    try:
        images = sizes.grid_batch * (WARMUP_STEPS + sizes.grid_steps)
        more = ["norm=bn", f"data.max_train={images}", f"dir={own}", "name=grid", *graphs(sizes)]
        config, cache = _compose(words(sizes, *more)), DataCache()
        settle(config, world)
        train(config, world, cache)
        barrier.wait()
        (Path(folder) / f"{index}.txt").write_text(str(train(config, world, cache).seconds))
    finally:
        world.leave()


def _compose(given: list[str]) -> RunConfig:
    (config,) = compose_jobs(given, multirun=False)
    return config


def _cell(config: RunConfig, world: World, cache: DataCache, sizes: Sizes) -> dict[str, Any]:
    settle(config, world)
    begun = time.perf_counter()
    watch = train(config, world, cache)
    wall = time.perf_counter() - begun
    step = watch.seconds / sizes.grid_steps
    return {
        "step_ms": 1000 * step,
        "images_per_s": sizes.grid_batch / step,
        "start_s": wall - watch.seconds,  # with an evaluation, and the warm-up's steps
    }


def projected(cells: dict[str, dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """Minutes of every cell of norms x NBS, and of those that differ; three seeds, 30 epochs, on one GPU."""
    steps = EPOCHS * (TRAIN_IMAGES // sizes.grid_batch)
    seconds = {
        name: SEEDS * (cell["start_s"] + steps * cell["step_ms"] / 1000) for name, cell in cells.items()
    }
    copies = {name: len(sizes.grid_nbs) if name == "gn" else 1 for name in seconds}
    return {
        "runs": SEEDS * sum(copies.values()),
        "minutes": sum(copies[name] * each for name, each in seconds.items()) / 60,
        "distinct_runs": SEEDS * len(seconds),
        "distinct_minutes": sum(seconds.values()) / 60,
        "target_minutes": TARGET_MINUTES,
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':20} {'ms/step':>8} {'images/s':>9} {'start s':>8}"]
    for name, cell in result["cells"].items():
        lines.append(f"{name:20} {cell['step_ms']:8.2f} {cell['images_per_s']:9.0f} {cell['start_s']:8.1f}")
    grid = result["grid"]
    lines.append(
        f"the grid, {EPOCHS} epochs of {TRAIN_IMAGES:,} images: {grid['runs']} runs {grid['minutes']:.0f} min, "
        f"of which {grid['distinct_runs']} differ: {grid['distinct_minutes']:.0f} min (aim: {TARGET_MINUTES})"
    )
    if "launched" in result:
        lines.append(
            f"without CUDA graphs bn of the whole batch: {result['launched']['step_ms']:.2f} ms/step"
        )
    if "together" in result:
        side = result["together"]
        minutes = grid.get("minutes_together")
        lines.append(
            f"{side['worlds']} worlds side by side on it: {side['images_per_s']:.0f} images/s"
            + (f", the grid {minutes:.0f} min" if minutes is not None else "")
        )
    lines += [f"left out for time: {what}" for what in result["left_out"]]
    return "\n".join(lines)
