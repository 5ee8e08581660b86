"""`hydra/launcher=slurm`: hand a sweep's jobs to SLURM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from hydra_plugins.bnbench_launchers.pool import PoolLauncher


class SlurmLauncher(PoolLauncher):
    """Calls `submit` of the application: a job returns the number of its SLURM job, with `wait` the run's status.

    Its keys are read before Hydra runs (`config/slurm.py`).
    """

    def __init__(self, **keys: Any) -> None:
        super().__init__()

    def hand_over(self, configs: Sequence[DictConfig]) -> Sequence[Any]:
        values: Sequence[Any] = self.application.submit(configs)  # type: ignore[attr-defined]
        return values
