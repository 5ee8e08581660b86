"""The training curve: loss and error over windows of steps, and divergence seen in them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.config import RunConfig
from bnbench.curves import append_rows, window_point
from bnbench.records import CURVE
from bnbench.training.meter import Totals
from bnbench.training.module import Classifier

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Window:
    """Steps up to `step`: over all ranks' images mean cross-entropy, error in percent and rate; the learning rate at
    its end."""

    step: int
    lr: float
    loss: float
    error: float
    images_per_s: float


class TrainingCurve(Callback):
    """Every `every` steps, and before each evaluation: one small collective, one row of `curve.csv`, the same to the
    logger, one report.

    A batch is one of `accumulate` parts of a step; an epoch has `steps` steps and `evaluations` evaluations.
    `windows` keeps the rows, `totals` adds up loss and error since the last evaluation. The file is written by rank 0
    (`folder` is None elsewhere). A loss that is not finite, or above `recipe.max_loss`, ends the run on every rank at
    the same step, since all see the same totals; `diverged_at` is that step.
    """

    def __init__(self, config: RunConfig, steps: int, report: Report, folder: Path | None = None) -> None:
        self.every, self.global_batch, self.report = config.trainer.log_every, config.global_batch, report
        self.parts, self.steps, self.total_steps = config.recipe.accumulate, steps, steps * config.epochs
        self.between = steps // config.evals_per_epoch
        self.totals = Totals()
        self.folder = folder
        self.windows: list[Window] = []
        self.diverged_at: int | None = None
        self.max_loss = math.inf if config.recipe.max_loss is None else config.recipe.max_loss
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
        window = Window(step, pl_module.lr, totals.loss, totals.error, rate)
        self._keep([window])
        if not (math.isfinite(totals.loss) and totals.loss <= self.max_loss):
            self.diverged_at = step
            trainer.should_stop = True
        if trainer.logger is not None:
            trainer.logger.log_metrics(window_point(dataclasses.asdict(window)), step=step)
        self.report(
            {"epoch": trainer.current_epoch, "step": step, "steps": self.total_steps,
             "images_per_s": rate}
        )  # fmt: skip

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = (trainer.global_step, time.perf_counter())

    def _keep(self, windows: list[Window]) -> None:
        self.windows += windows
        if self.folder is not None:
            append_rows(self.folder / CURVE, [dataclasses.asdict(window) for window in windows])

    @property
    def points(self) -> list[tuple[int, float, float]]:
        """(step, learning rate, loss) of each window."""
        return [(window.step, window.lr, window.loss) for window in self.windows]

    def state_dict(self) -> dict[str, Any]:
        windows = [dataclasses.astuple(window) for window in self.windows]
        return {"windows": windows, "totals": dataclasses.astuple(self.totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._keep([Window(*values) for values in state["windows"]])
        self.totals = Totals(*state["totals"])
        self._since = (self.windows[-1].step if self.windows else 0, time.perf_counter())

    def drain(self) -> Totals:
        """The totals since the last call: those that an evaluation's row stands beside."""
        totals, self.totals = self.totals, Totals()
        return totals
