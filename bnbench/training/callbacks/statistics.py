"""Running statistics during training: merged over ranks, watched, and for some norms merged at every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from bnbench.norms import freeze_statistics, merge_running_statistics, running_statistics


class RunningStatistics(Callback):
    """Applies a policy (`mean` or `rank0`) before each evaluation.

    Statistics that are not finite then end the run on every rank, since after the merge all see the same:
    the training loss does not read them and may look well. `poisoned` says which and when.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.poisoned: str | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.merge(pl_module, trainer.global_step)
        if self.poisoned is not None:
            trainer.should_stop = True

    def merge(self, model: nn.Module, step: int) -> None:
        """Call it on every rank."""
        merge_running_statistics(model, self.policy)
        path = poisoned_buffer(model)
        if path is not None and self.poisoned is None:
            self.poisoned = f"running statistics not finite after step {step}: {path}"


class MergeEveryStep(Callback):
    """For a norm whose training step reads the running statistics (Batch Renormalization), on several ranks."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        merge_running_statistics(pl_module, "mean")


class FreezeStatistics(Callback):
    """From step ceil(`after` * steps of training) on, batch norms normalize by their statistics of then."""

    def __init__(self, after: float, total_steps: int, policy: str) -> None:
        self.first = math.ceil(after * total_steps)
        self.policy = policy
        self.frozen = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.frozen and trainer.global_step >= self.first:
            self.frozen = True
            merge_running_statistics(pl_module, self.policy)
            freeze_statistics(pl_module)


def poisoned_buffer(model: nn.Module) -> str | None:
    """The path of the first running mean or variance with a value that is not finite; one wait for the device."""
    running = running_statistics(model)
    if not running:
        return None
    finite = torch.stack([buffer.isfinite().all() for buffer in running.values()]).tolist()
    bad = [path for path, fine in zip(running, finite, strict=True) if not fine]
    return bad[0].removeprefix("model.") if bad else None
