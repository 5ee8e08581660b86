"""A training step under bnbench against a bare torch loop: same network, images, optimizer, schedule and ranks.

On one warm world of gloo ranks, one thread each. In a round all of them train side by side, a few steps each in turn: a
shared machine is faster or slower from one few seconds to the next, which turns of a third of a second share out
evenly. A ratio is taken within a round, of all of its steps, so that what comes every 50th step is in it. All ranks
begin a turn together, and a contender's seconds are those of the rank that took longest.
`plain` is Lightning without anything of ours; `bnbench` is a run with all that it does and logs in its steps, W&B
(offline), curve, looks at health and speed and the ranks' agreement on checkpoints included.
Its health signals come too rarely for a round to tell their cost: they are taken at every other step of a run, and
what such a step takes more is spread over their interval.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.training.setup import DataCache, settle
from bnbench.training.world import World

from .block import WARMUP_STEPS, Stopwatch, train
from .figures import Figure, figure_lines
from .turns import PassOn, take_turns
from .yardsticks import bare, plain


@dataclass(frozen=True)
class Size:
    """A network and its images: the words of a run, images a rank, timed steps of a round and of a turn within it,
    and the target on two ranks: bnbench / bare, with everything that it logs."""

    words: tuple[str, ...]
    images: int
    steps: int
    turn: int
    target: float


RESNET50 = ("model=resnet50", "data=synthetic", "data.image_size=64")
SIZES: dict[str, Size] = {
    "resnet8-32": Size((), 32, 150, 10, 1.03),
    "resnet8-2": Size((), 2, 400, 25, 1.15),
    "resnet50-4": Size(RESNET50, 4, 20, 1, 1.02),
}
TARGET_RANKS = 2
HEALTH_TARGET = 0.02  # of a step, at the default interval
Contender = Callable[[RunConfig, World, DataCache, Stopwatch], Stopwatch]
CONTENDERS: dict[str, Contender] = {"bare": bare, "plain": plain, "bnbench": train}


def chosen(names: Sequence[str] | None) -> dict[str, Size]:
    """Of `SIZES`; all for None. Raises ValueError for an unknown name."""
    if unknown := [name for name in names or () if name not in SIZES]:
        raise ValueError(f"--sizes={','.join(unknown)} is unknown; known: {', '.join(SIZES)}")
    return {name: SIZES[name] for name in names or SIZES}


def measure(rounds: int, ranks: int, sizes: Mapping[str, Size]) -> dict[str, Any]:
    """By size and contender: milliseconds a step, and the ratios to `bare`. Raises ValueError for numbers below 1."""
    if rounds < 1 or ranks < 1:
        raise ValueError(f"--rounds={rounds} and --ranks={ranks} must be at least 1")
    import torch.multiprocessing as mp

    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (ranks, rounds, dict(sizes), folder), nprocs=ranks, start_method="forkserver"
        )
        by_size = json.loads((Path(folder) / "found.json").read_text())
    load.append(os.getloadavg()[0])
    return {
        "rounds": rounds,
        "ranks": ranks,
        "threads": 1,
        "load_before_and_after": [round(value, 2) for value in load],
        "by_size": by_size,
        "figures": [figure for found in by_size.values() for figure in found["figures"]],
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['ranks']} rank(s), one thread each, {result['rounds']} rounds; "
        "median [an interval of it, about 95%]"
    ]
    for size, found in result["by_size"].items():
        times = ", ".join(f"{name} {ms:.3f}" for name, ms in found["ms"].items())
        health = found["health"]
        lines.append(
            f"{size}: ms a step: {times}; {health['extra']:.2f} of a step for a look at health, every "
            f"{health['every']} steps"
        )
    return "\n".join([*lines, *figure_lines(map(Figure.from_json, result["figures"]))])


def _rank(rank: int, ranks: int, rounds: int, sizes: Mapping[str, Size], folder: str) -> None:
    world = World.join(Place(rank, ranks, rank, ranks), "cpu", str(Path(folder) / "store"))
    os.chdir(folder)
    try:
        found = {name: _size(name, size, rounds, world) for name, size in sizes.items()}
        if world.leads:
            Path("found.json").write_text(json.dumps(found))
    finally:
        world.leave()


def _size(name: str, size: Size, rounds: int, world: World) -> dict[str, Any]:
    config = _config(size, world.place.size)
    settle(config, world)
    cache = DataCache()
    for contender in CONTENDERS.values():
        contender(config, world, cache, Stopwatch())  # imports, allocator, W&B's service
    wall: dict[str, list[float]] = {each: [] for each in CONTENDERS}
    cpu: dict[str, list[float]] = {each: [] for each in CONTENDERS}
    for turn in range(rounds):
        watches = _round(_rotated(list(CONTENDERS), turn), size.turn, config, world, cache)
        for each, watch in sorted(watches.items()):  # in one order on all ranks
            wall[each].append(world.largest(watch.seconds))
            cpu[each].append(sum(world.gathered(watch.cpu_seconds)))
    health = _health(config, world, cache)
    target = size.target if world.place.size == TARGET_RANKS else None
    figures = [
        _to_bare(f"{name}: bnbench / bare", wall, "bnbench", target),
        _to_bare(f"{name}: plain Lightning / bare", wall, "plain"),
        _to_bare(f"{name}: bnbench / bare, CPU time of all ranks", cpu, "bnbench"),
        Figure(f"{name}: health signals, of a step", health["share"], target=HEALTH_TARGET),
    ]
    return {
        "images": size.images,
        "steps": size.steps,
        "ms": {each: 1000 * statistics.median(seconds) / size.steps for each, seconds in wall.items()},
        "seconds": wall,
        "cpu_seconds": cpu,
        "health": health,
        "figures": [figure.to_json() for figure in figures],
    }


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _to_bare(
    what: str, seconds: Mapping[str, Sequence[float]], name: str, target: float | None = None
) -> Figure:
    ratios = [mine / bare for mine, bare in zip(seconds[name], seconds["bare"], strict=True)]
    return Figure.of(what, ratios, target=target)


def _round(
    order: Sequence[str], turn: int, config: RunConfig, world: World, cache: DataCache
) -> dict[str, Stopwatch]:
    """Each once, side by side, `turn` steps in turn; without the garbage of the round before, and, as a run's ranks
    are, without a collector that walks through what is imported."""

    def contender(train: Contender) -> Callable[[PassOn], Stopwatch]:
        def run(pass_on: PassOn) -> Stopwatch:
            def together() -> None:
                pass_on()
                world.gathered(None)  # what a rank is late by is not the next one's

            return train(config, world, cache, Stopwatch(turn, together))

        return run

    gc.collect()
    gc.freeze()
    try:
        # A run hears signals, which Python lets only its main thread do.
        return take_turns({name: contender(CONTENDERS[name]) for name in order}, here="bnbench")
    finally:
        gc.unfreeze()


def _config(size: Size, ranks: int) -> RunConfig:
    images = size.images * ranks * (WARMUP_STEPS + size.steps)
    (config,) = compose_jobs(
        [
            *size.words, f"global_batch={size.images * ranks}", f"trainer.devices={ranks}", "trainer.threads=1",
            "trainer.accelerator=cpu", f"data.max_train={images}", f"data.max_test={ranks}", "epochs=1",
            "optim.warmup_epochs=0", "logger.mode=offline", "dir=runs", "name=bench",
        ],
        multirun=False,
    )  # fmt: skip
    return config


def _health(config: RunConfig, world: World, cache: DataCache) -> dict[str, Any]:
    """What a look at the health signals costs, in steps: CPU time, which a busy machine leaves alone, of rank 0's steps
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
