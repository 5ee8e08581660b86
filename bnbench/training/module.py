"""The LightningModule: one classification step, and validation that counts each image once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from bnbench.models import logits_of

from .meter import Meter, Totals

BuildOptimizer = Callable[[nn.Module], tuple[torch.optim.Optimizer, LambdaLR]]


class Classifier(LightningModule):
    """Trains `model` on (images (N, 3, H, W), labels (N,)) by cross-entropy.

    Nothing is logged in a step: `window` gathers what callbacks read at their own interval. The optimizer
    and schedule are stepped here: Lightning's automatic loop adds 3% to a step of two images.
    A model with auxiliary heads gives several logits in training: the loss is the first's cross-entropy plus
    `aux_weight` times each of the others', the error the first's (Szegedy et al. 2015).
    """

    def __init__(self, model: nn.Module, build_optimizer: BuildOptimizer, aux_weight: float = 0.0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.build_optimizer = build_optimizer
        self.aux_weight = aux_weight
        self.window = Meter()
        self.validation = Meter()
        self.validated: Totals | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def on_fit_start(self) -> None:
        self._stepped: Any = (self.optimizers(), self.lr_schedulers())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = self.model(images)
        if isinstance(output, Tensor):
            logits = output
            loss = F.cross_entropy(logits, labels)
        else:
            logits, *others = logits_of(output)
            loss = F.cross_entropy(logits, labels)
            for other in others:
                loss = loss + self.aux_weight * F.cross_entropy(other, labels)
        self.window.add(loss, logits, labels)
        optimizer, schedule = self._stepped
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the loaders make batches where the images lie: on the device

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = self.model(images)
        logits = output if isinstance(output, Tensor) else logits_of(output)[0]
        self.validation.add(F.cross_entropy(logits.double(), labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.validated = self.validation.drain()

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.build_optimizer(self.model)
        return [optimizer], [schedule]
