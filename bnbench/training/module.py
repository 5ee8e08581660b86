"""The LightningModule: one classification step, and validation that counts each image once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from bnbench.config import RecipeConfig
from bnbench.models import logits_of

from .average import WeightAverage
from .graphs import CapturedStep
from .marks import UNMARKED, Unmarked
from .meter import Meter, Totals

BuildOptimizer = Callable[[nn.Module], tuple[torch.optim.Optimizer, LambdaLR]]


class Classifier(LightningModule):
    """Trains `model` on (images (N, 3, H, W), labels (N,)) by cross-entropy, by a recipe.

    Nothing is logged in a step: `window` gathers what callbacks read at their own interval. The optimizer
    and schedule are stepped here: Lightning's automatic loop adds 3% to a step of two images.
    A model with auxiliary heads gives several logits in training: the loss is the first's cross-entropy plus
    `aux_weight` times each of the others', the error the first's (Szegedy et al. 2015).

    With `recipe.accumulate` = k, k batches make a step: their gradients are averaged, and the ranks' with them
    after the last. Statistics are those of each batch by itself: accumulation never enlarges NBS.
    With `recipe.ema`, what is validated and kept is the moving average (`evaluated`).
    With `cuda_graphs`, forward and backward pass are replayed (`graphs.CapturedStep`).
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: BuildOptimizer,
        recipe: RecipeConfig,
        aux_weight: float = 0.0,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.build_optimizer = build_optimizer
        self.recipe = recipe
        self.aux_weight = aux_weight
        self.average: WeightAverage | None = None
        self.captured = CapturedStep(model, self.judge) if cuda_graphs else None
        self.window = Meter()
        self.validation = Meter()
        self.validated: Totals | None = None
        self.lr = 0.0  # of the last step: the optimizer has the next one's by then
        self.marks: Unmarked = UNMARKED  # `Speed` puts others there for a step that it looks at

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the trained one, or the moving average of it."""
        return self.model if self.average is None else self.average.model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def on_fit_start(self) -> None:
        self._stepped: Any = (self.optimizers(), self.lr_schedulers())
        if self.recipe.ema is not None:
            self.average = WeightAverage(self.model, self.recipe.ema)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        marks = self.marks
        marks.begin("forward")
        images, labels = batch
        if self.captured is not None:
            loss, logits = self.captured(images, labels)
        else:
            loss, logits = self.judge(self.model(images), labels)
        self.window.add(loss, logits, labels)
        optimizer, schedule = self._stepped
        parts = self.recipe.accumulate
        if batch_idx % parts == 0:
            marks.begin("optimizer")
            optimizer.zero_grad()
        marks.begin("backward")
        if (batch_idx + 1) % parts:
            with self._gradients_stay():
                self.manual_backward(loss / parts)
            marks.begin("other")
            return
        if parts > 1:
            loss = loss / parts
        marks.before_backward(loss)
        self.manual_backward(loss)
        marks.begin("optimizer")
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        if self.average is not None:
            self.average.update(self.model)
        marks.begin("other")

    def judge(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss () of a network's output, and its main logits (N, classes)."""
        if isinstance(output, Tensor):
            return self._loss(output, labels), output
        logits, *others = logits_of(output)
        loss = self._loss(logits, labels)
        for other in others:
            loss = loss + self.aux_weight * self._loss(other, labels)
        return loss, logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def _gradients_stay(self) -> AbstractContextManager[Any]:
        """Within it, a backward pass leaves its gradients on this rank."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the loaders make batches where the images lie: on the device

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = self.evaluated(images)
        logits = output if isinstance(output, Tensor) else logits_of(output)[0]
        self.validation.add(F.cross_entropy(logits.double(), labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.validated = self.validation.drain()

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.build_optimizer(self.model)
        return [optimizer], [schedule]
