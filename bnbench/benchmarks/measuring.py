"""What it adds to training that a run looks at its own speed, on gloo ranks of this machine.

By CPU time, which stands still while others have the core and while a rank waits for another: measuring makes nobody
wait. Three things, each in rounds on one warm world:

- a look: taken at every third step of a block, and what its step and the one before it, which prepares it, take more
  than the third, cycle by cycle, so that a noisy machine hits all three alike; the same of blocks without a look is
  what noise comes to. Spread over the interval;
- the counted step against the next one, which is as cold. Spread over `RUN_STEPS`;
- whole blocks with and without, in another order each round: a check that there is nothing else, as fine as
  `off again`, the yardstick a second time, is near to 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.training.callbacks.speed import COUNTED_STEP
from bnbench.training.setup import DataCache, settle
from bnbench.training.world import World

from .block import WARMUP_STEPS, Stopwatch, train
from .figures import Figure, median_interval

RANKS = 2
TARGET = 0.02  # of training
RUN_STEPS = 1000
CYCLE = 3  # a look's step, a plain one, one that prepares a look
Sizes = Mapping[str, tuple[tuple[str, ...], int]]  # words, and timed steps of a block
# SyncBN makes the most marks in a step: two beside each collective.
SIZES: Sizes = {
    "resnet8 of width 4, 8 images": (("model.width=4", "global_batch=8"), 120),
    "resnet8, 64 images": (("global_batch=64",), 60),
    "resnet20, 128 images": (("model=resnet20", "global_batch=128"), 24),
}
CONTENDERS: dict[str, tuple[str, ...]] = {
    "off": ("measure=none",),
    "off again": ("measure=none",),
    "on": ("measure=standard", "measure.health_every=null"),
    "looks": ("measure=none", f"measure.speed_every={CYCLE}"),
}


def measure(rounds: int, sizes: Sizes = SIZES) -> dict[str, Any]:
    """By size: what a look and the counted step take more, in steps, and each contender's block to `off`'s."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (rounds, sizes, folder), nprocs=RANKS, start_method="forkserver")
        by_size = json.loads((Path(folder) / "found.json").read_text())
    figures = [share_of_training(size, found["share"]).to_json() for size, found in by_size.items()]
    return {"rounds": rounds, "ranks": RANKS, "threads": 1, "by_size": by_size, "figures": figures}


def table(result: dict[str, Any]) -> str:
    lines = [f"CPU time, {result['ranks']} ranks, one thread each; median [an interval of it, about 95%]"]
    for size, found in result["by_size"].items():
        look, count, share = found["look"], found["count"], found["share"]
        lines += [
            f"{size}: {found['step_ms']:.1f} ms a step",
            f"  a look {_text(look)} of a step (without one {_text(found['noise'])}), every {found['every']} steps",
            f"  the counted step {_text(count)} more, once",
            f"  of {RUN_STEPS} steps {_text(share)}; {share_of_training(size, share).aim}",
        ]
        blocks = ", ".join(f"{name} {_text(ratio)}" for name, ratio in found["blocks"].items())
        lines.append(f"  whole blocks to off: {blocks}")
    return "\n".join(lines)


def share_of_training(size: str, share: Mapping[str, float]) -> Figure:
    return Figure(f"{size}: share of training", share["median"], share["low"], share["high"], target=TARGET)


def _rank(rank: int, rounds: int, sizes: Sizes, folder: str) -> None:
    world = World.join(Place(rank, RANKS, rank, RANKS), "cpu", str(Path(folder) / "store"))
    os.chdir(folder)
    try:
        found = {size: _size(words, steps, rounds, world) for size, (words, steps) in sizes.items()}
        if world.leads:
            Path("found.json").write_text(json.dumps(found))
    finally:
        world.leave()


def _size(words: Sequence[str], steps: int, rounds: int, world: World) -> dict[str, Any]:
    configs = {name: _config(words, steps, more) for name, more in CONTENDERS.items()}
    settle(configs["off"], world)
    cache = DataCache()
    blocks: dict[str, list[Stopwatch]] = {name: [] for name in configs}
    train(configs["looks"], world, cache)  # imports and the allocator
    for turn in range(rounds):
        names = list(configs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            blocks[name].append(train(configs[name], world, cache))
    every = configs["on"].measure.speed_every
    assert every is not None
    look, noise = (
        _median([extra for block in blocks[name] for extra in extras(block.busy)])
        for name in ("looks", "off")
    )
    count = _median([counted(block.busy) for block in blocks["looks"]])
    return {
        "steps": steps,
        "step_ms": 1000 * statistics.median(block.seconds for block in blocks["off"]) / steps,
        "every": every,
        "look": look,
        "noise": noise,
        "count": count,
        "share": {key: look[key] / every + count[key] / RUN_STEPS for key in look},
        "blocks": {
            name: _median(
                [one.cpu_seconds / off.cpu_seconds for one, off in zip(mine, blocks["off"], strict=True)]
            )
            for name, mine in blocks.items()
            if name in ("off again", "on")
        },
    }


def _config(words: Sequence[str], steps: int, more: Sequence[str]) -> RunConfig:
    fixed = (
        f"trainer.devices={RANKS}", "trainer.threads=1", "trainer.accelerator=cpu", "norm=syncbn", "data=synthetic",
        "data.test_images=2", "epochs=1", "optim.warmup_epochs=0", "trainer.log_every=1000000", "logger=none",
        "dir=runs", "name=bench",
    )  # fmt: skip
    (config,) = compose_jobs([*fixed, *words, *more], multirun=False)
    images = config.global_batch * (WARMUP_STEPS + steps)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train_images=images))


def seconds_by_step(busy: Sequence[float]) -> dict[int, float]:
    """Of each step from the second on, by the CPU time at each step's end."""
    return {n: now - before for n, (before, now) in enumerate(itertools.pairwise(busy), start=2)}


def extras(busy: Sequence[float]) -> list[float]:
    """Of each cycle after the warm-up, in steps: what looking takes, where each third step is looked at."""
    seconds = seconds_by_step(busy)
    last = max(seconds) - CYCLE + 1
    firsts = [n for n in seconds if n > WARMUP_STEPS and n % CYCLE == 1 and n <= last]
    return [(seconds[n + 1] + seconds[n + 2]) / seconds[n] - 2 for n in firsts]


def counted(busy: Sequence[float]) -> float:
    """What the counted step takes more than the next, in steps."""
    seconds = seconds_by_step(busy)
    typical = statistics.median(value for n, value in seconds.items() if n > WARMUP_STEPS)
    return (seconds[COUNTED_STEP] - seconds[COUNTED_STEP + 1]) / typical


def _median(values: Sequence[float]) -> dict[str, float]:
    low, high, _ = median_interval(values)
    return {"median": statistics.median(values), "low": low, "high": high}


def _text(found: Mapping[str, float]) -> str:
    return f"{found['median']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
