"""Merge the running statistics of all ranks before evaluation reads them."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.norms import merge_running_statistics


class RunningStatistics(Callback):
    """Applies a policy (`mean` or `rank0`) before each evaluation."""

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        merge_running_statistics(pl_module, self.policy)
