"""Loss and error over many batches, added up on the device and read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Sums over images: cross-entropy loss, wrong predictions, images."""

    loss_sum: float = 0.0
    wrong: float = 0.0
    images: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.loss_sum + other.loss_sum, self.wrong + other.wrong, self.images + other.images)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def error(self) -> float:
        """Percent of images classified wrongly."""
        return 100 * self.wrong / self.images


class Meter:
    """Keeps batches' outputs as they are and works them out together: no arithmetic in the step.

    Per-step metric objects cost a small model more than its optimizer (results/, `bnbench bench step`).
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """`mean_loss` () over the batch, `logits` (N, classes), `labels` (N,); detached here."""
        self._batches.append((mean_loss.detach(), logits.detach(), labels))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": [tuple(part.cpu() for part in batch) for batch in self._batches]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._batches = [tuple(part.to(device) for part in batch) for batch in state["batches"]]

    def drain(self) -> Totals:
        """The totals over all ranks since the last drain: one small collective. Call it on every rank."""
        batches, self._batches = self._batches, []
        device = batches[0][0].device if batches else torch.device("cpu")
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        if batches:
            losses, logits, labels = zip(*batches, strict=True)
            sizes = torch.tensor([len(y) for y in labels], dtype=torch.float64, device=device)
            sums[0] = torch.dot(torch.stack(losses).double(), sizes)
            sums[1] = (torch.cat(logits).argmax(1) != torch.cat(labels)).sum()
            sums[2] = sizes.sum()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        return Totals(*sums.tolist())
