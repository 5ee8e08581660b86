"""The training curve: loss and error over windows of steps, and divergence seen in them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.config import RunConfig
from bnbench.training.meter import Totals
from bnbench.training.module import Classifier

Report = Callable[[Mapping[str, Any]], None]


class TrainingCurve(Callback):
    """Every `every` steps, and before each evaluation: one small collective, one point of the curve, one report.

    A batch is one of `accumulate` parts of a step; an epoch has `steps` steps and `evaluations` evaluations.
    Loss and error are over all ranks' images of the window; `points` keeps (step, learning rate, loss) of each,
    and `totals` adds them up since the last evaluation. A loss that is not finite ends the run on every rank
    at the same step, since all see the same totals; `diverged_at` is that step.
    """

    def __init__(self, config: RunConfig, steps: int, report: Report) -> None:
        self.every, self.global_batch, self.report = config.trainer.log_every, config.global_batch, report
        self.parts, self.steps, self.total_steps = config.recipe.accumulate, steps, steps * config.epochs
        self.between = steps // config.evals_per_epoch
        self.totals = Totals()
        self.points: list[tuple[int, float, float]] = []
        self.diverged_at: int | None = None
        self._since = (0, 0.0)  # step and time of the last window's end

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, within = divmod(batch_idx + 1, self.parts)  # steps of this epoch
        if within or (done % self.every and done % self.between):
            return
        assert isinstance(pl_module, Classifier)
        totals = pl_module.window.drain()
        self.totals += totals
        step, now = trainer.global_step, time.perf_counter()
        last_step, last_time = self._since
        rate = (step - last_step) * self.global_batch / (now - last_time)
        self._since = (step, now)
        lr = pl_module.lr
        self.points.append((step, lr, totals.loss))
        if not math.isfinite(totals.loss):
            self.diverged_at = step
            trainer.should_stop = True
        elif trainer.logger is not None:
            point = {"train/loss": totals.loss, "train/error": totals.error, "throughput/images_per_s": rate}
            point["lr"] = lr
            trainer.logger.log_metrics(point, step=step)
        self.report(
            {"epoch": trainer.current_epoch, "step": step, "steps": self.total_steps,
             "images_per_s": rate}
        )  # fmt: skip

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = (trainer.global_step, time.perf_counter())

    def state_dict(self) -> dict[str, Any]:
        return {"points": list(self.points), "totals": dataclasses.astuple(self.totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.points = [tuple(point) for point in state["points"]]
        self.totals = Totals(*state["totals"])
        self._since = (self.points[-1][0] if self.points else 0, time.perf_counter())

    def drain(self) -> Totals:
        """The totals since the last call: those that an evaluation's row stands beside."""
        totals, self.totals = self.totals, Totals()
        return totals
