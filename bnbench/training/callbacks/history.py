"""The series of a run, an evaluation a row, kept on disk as it grows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.curves import append_rows, evaluation_point
from bnbench.records import EPOCHS
from bnbench.training.callbacks.curve import TrainingCurve
from bnbench.training.module import Classifier


@dataclass(frozen=True)
class Evaluation:
    """One evaluation and the training since the last: losses are mean cross-entropy, errors percent, over all ranks."""

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_error: float
    val_loss: float
    val_error: float
    train_seconds: float
    val_seconds: float
    images_per_s: float


class History(Callback):
    """Rows of `epochs.csv`, one for each evaluation, and the same to the logger. Train time excludes evaluation.

    The file is written by rank 0 (`folder` is None elsewhere), a whole row at a time.
    """

    def __init__(self, folder: Path | None, curve: TrainingCurve) -> None:
        self.folder, self.curve = folder, curve
        self.evaluations: list[Evaluation] = []
        self._train_started = self._train_ended = 0.0

    @property
    def epochs(self) -> list[Evaluation]:
        """The evaluations at the ends of epochs."""
        return [row for row in self.evaluations if row.step % self.curve.steps == 0]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_started = _now(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_ended = _now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        ended = _now(pl_module.device)
        seconds, self._train_started = self._train_ended - self._train_started, ended
        if self.curve.diverged_at is not None or pl_module.validated is None:
            return
        train, validated = self.curve.drain(), pl_module.validated
        row = Evaluation(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            lr=pl_module.lr,
            train_loss=train.loss,
            train_error=train.error,
            val_loss=validated.loss,
            val_error=validated.error,
            train_seconds=seconds,
            val_seconds=ended - self._train_ended,
            images_per_s=self.curve.between * self.curve.global_batch / seconds,
        )
        self.evaluations.append(row)
        self._write(row)
        if trainer.logger is not None:
            trainer.logger.log_metrics(evaluation_point(dataclasses.asdict(row)), step=row.step)

    def _write(self, row: Evaluation) -> None:
        if self.folder is not None:
            append_rows(self.folder / EPOCHS, [dataclasses.asdict(row)])

    def state_dict(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(row) for row in self.evaluations]
        return {"evaluations": rows, "train_seconds": time.perf_counter() - self._train_started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._train_started = time.perf_counter() - state["train_seconds"]
        for values in state["evaluations"]:
            row = Evaluation(**values)
            self.evaluations.append(row)
            self._write(row)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
