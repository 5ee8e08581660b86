"""Merge the running statistics of all ranks before anything reads them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.norms import merge_running_statistics


class RunningStatistics(Callback):
    """Applies a policy (`mean` or `rank0`) before each evaluation and each checkpoint."""

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        merge_running_statistics(pl_module, self.policy)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning has gathered the state already: merge, then put the merged buffers in.
        merge_running_statistics(pl_module, self.policy)
        checkpoint["state_dict"].update(pl_module.state_dict())
