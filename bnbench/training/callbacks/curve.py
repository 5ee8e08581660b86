"""The training curve: loss and error over windows of steps, and divergence seen in them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.training.meter import Totals
from bnbench.training.module import Classifier

Report = Callable[[Mapping[str, Any]], None]


class TrainingCurve(Callback):
    """Every `every` steps: one small collective, one point of the curve, one progress report.

    Loss and error are over all ranks' images of the window. A loss that is not finite ends the run on
    every rank at the same step, since all see the same totals; `diverged_at` is that step.
    """

    def __init__(self, every: int, global_batch: int, report: Report) -> None:
        self.every, self.global_batch, self.report = every, global_batch, report
        self.epoch_totals = Totals()
        self.diverged_at: int | None = None
        self._since = (0, 0.0)  # step and time of the last window's end

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_totals = Totals()
        self._since = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every and not trainer.is_last_batch:
            return
        assert isinstance(pl_module, Classifier)
        totals = pl_module.window.drain()
        self.epoch_totals += totals
        step, now = trainer.global_step, time.perf_counter()
        last_step, last_time = self._since
        rate = (step - last_step) * self.global_batch / (now - last_time)
        self._since = (step, now)
        if not math.isfinite(totals.loss):
            self.diverged_at = step
            trainer.should_stop = True
        elif trainer.logger is not None:
            point = {"train/loss": totals.loss, "train/error": totals.error, "throughput/images_per_s": rate}
            point["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            trainer.logger.log_metrics(point, step=step)
        self.report(
            {"epoch": trainer.current_epoch, "step": step, "steps": trainer.estimated_stepping_batches,
             "images_per_s": rate}
        )  # fmt: skip
