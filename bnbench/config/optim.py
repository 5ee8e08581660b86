"""The recipe of a run: optimizer and learning rate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bnbench import catalog

from .fields import STRICT, Float, Int, positive


@dataclass(frozen=True)
class OptimConfig:
    __pydantic_config__ = STRICT
    name: str
    lr: Float
    lr_rule: str
    base_batch: Int | None
    momentum: Float
    nesterov: bool
    weight_decay: Float
    decay_norm: bool
    warmup_epochs: Float

    def __post_init__(self) -> None:
        catalog.check_known("optim", self.name, ("sgd",))
        catalog.check_known("optim.lr_rule", self.lr_rule, catalog.LR_RULES)
        positive("optim.lr", self.lr)
        positive("optim.base_batch", self.base_batch)
        positive("optim.weight_decay", self.weight_decay, inclusive=True)
        positive("optim.warmup_epochs", self.warmup_epochs, inclusive=True)
        if self.lr_rule != "none" and self.base_batch is None:
            raise ValueError(
                f"optim.lr_rule={self.lr_rule} scales optim.lr by global_batch / optim.base_batch: "
                "give optim.base_batch, the global batch that optim.lr is meant for"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum} must lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov=true needs optim.momentum above 0: set optim.nesterov=false")

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warmup, by the stated rule in the global batch."""
        if self.base_batch is None or self.lr_rule == "none":
            return self.lr
        ratio = global_batch / self.base_batch
        return self.lr * {"linear": ratio, "sqrt": ratio**0.5}[self.lr_rule]

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this recipe does not read."""
        unread = self.lr_rule == "none" and self.base_batch is not None
        return {"base_batch": self.base_batch} if unread else {}

    def without_ignored(self) -> OptimConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)
