"""How a sweep uses this machine: the keys of `hydra/launcher=pool`. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TARGET = "hydra_plugins.bnbench_launchers.pool.PoolLauncher"


@dataclass(frozen=True)
class PoolOptions:
    """`worlds` side by side, each on its own GPUs or cores; with `fresh_world` a new one for each run."""

    worlds: int = 1
    fresh_world: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.worlds, bool) or not isinstance(self.worlds, int) or self.worlds < 1:
            raise ValueError(f"hydra.launcher.worlds={self.worlds} must be a whole number of at least 1")
        if not isinstance(self.fresh_world, bool):
            raise ValueError(f"hydra.launcher.fresh_world={self.fresh_world} must be true or false")


def pool_options(launcher: Mapping[str, Any]) -> PoolOptions:
    """The options in Hydra's launcher config; the defaults for another launcher. ValueError for a wrong one."""
    if launcher.get("_target_") != TARGET:
        return PoolOptions()
    given = {str(key): value for key, value in launcher.items() if key != "_target_"}
    if unknown := sorted(set(given) - {"worlds", "fresh_world"}):
        raise ValueError(f"hydra.launcher.{unknown[0]} is read by nothing; known: worlds, fresh_world")
    return PoolOptions(**given)


@dataclass(frozen=True)
class Share:
    """What world number `index` of `of` may use of this machine: `each` GPUs, the most that any run wants."""

    index: int = 0
    of: int = 1
    each: int = 1

    def cores(self, cores: Sequence[int]) -> list[int]:
        """Its part of the cores, as large as the others'; all of them where there are fewer than worlds."""
        each = len(cores) // self.of
        return sorted(cores)[self.index * each : (self.index + 1) * each] or sorted(cores)

    def gpus(self, devices: int, count: int, visible: str | None) -> list[str]:
        """`devices` of its GPUs as CUDA_VISIBLE_DEVICES has them, of the `count` that are `visible` (None: all)."""
        names = [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]
        first = self.index * self.each
        return names[first : first + devices]

    def take(self, devices: int, count: int) -> None:
        """Keep this process to its share of the cores and the `count` GPUs. Before CUDA is touched: later it would see
        no change. Raises ValueError where there are GPUs, and too few are its.
        """
        os.sched_setaffinity(0, self.cores(list(os.sched_getaffinity(0))))
        mine = self.gpus(devices, count, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if count and len(mine) < devices:
            raise ValueError(
                f"hydra.launcher.worlds={self.of} with trainer.devices={self.each}: that takes {self.of * self.each} "
                f"GPUs, and there are {count} here; lower one of them, or set trainer.accelerator=cpu"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
