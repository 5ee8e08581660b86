"""`hydra/launcher=pool`: hand a sweep's jobs to bnbench's world starter, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from bnbench.sweep.options import PoolOptions


class PoolLauncher(Launcher):
    """Composes each job as Hydra asks and calls `sweep` of the application.

    The jobs return COMPLETED with the run's status as value: Hydra's sweepers raise on FAILED, which
    would lose the rest of a sweep over one run that diverged.
    """

    def __init__(self, worlds: int = 1, fresh_world: bool = False) -> None:
        self.options = PoolOptions(worlds, fresh_world)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.application, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.context.config_loader
        configs = [loader.load_sweep_config(self.config, list(words)) for words in job_overrides]
        returns = []
        for words, config, value in zip(job_overrides, configs, self.hand_over(configs), strict=True):
            job = JobReturn(overrides=words, cfg=config, working_dir=str(config.dir), task_name="train")
            job.status, job.return_value = JobStatus.COMPLETED, value
            returns.append(job)
        return returns

    def hand_over(self, configs: Sequence[DictConfig]) -> Sequence[Any]:
        """What each job returns."""
        statuses: Sequence[Any] = self.application.sweep(configs, self.options)  # type: ignore[attr-defined]
        return statuses
