"""The recipe of a run: optimizer, learning rate and its schedule, and what else shapes a step."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
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
    weight_decay: Float
    decay_norm: bool
    warmup_epochs: Float
    momentum: Float | None = None
    nesterov: bool | None = None
    betas: tuple[Float, Float] | None = None
    eps: Float | None = None
    trust: Float | None = None

    def __post_init__(self) -> None:
        catalog.check_known("optim", self.name, catalog.OPTIMIZERS)
        catalog.check_known("optim.lr_rule", self.lr_rule, catalog.LR_RULES)
        for key in catalog.OPTIMIZERS[self.name].uses:
            if getattr(self, key) is None:
                raise ValueError(
                    f"optim.{key} has no value, and optim={self.name} needs one: give optim.{key}=..."
                )
        for key in ("lr", "base_batch", "eps", "trust"):
            positive(f"optim.{key}", getattr(self, key))
        positive("optim.weight_decay", self.weight_decay, inclusive=True)
        positive("optim.warmup_epochs", self.warmup_epochs, inclusive=True)
        if self.lr_rule != "none" and self.base_batch is None:
            raise ValueError(
                f"optim.lr_rule={self.lr_rule} scales optim.lr by global_batch / optim.base_batch: "
                "give optim.base_batch, the global batch that optim.lr is meant for"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum} must lie in [0, 1)")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={list(self.betas)} must both lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov=true needs optim.momentum above 0: set optim.nesterov=false")
        if self.name == "lars" and not self.weight_decay:
            raise ValueError(
                "optim.weight_decay=0 with optim=lars: timm's Lars rescales only what decays, and would be plain SGD; "
                "give optim.weight_decay=1e-6 or more"
            )
        if self.name == "lars" and importlib.util.find_spec("timm") is None:
            raise ValueError("optim=lars is timm's Lars, and timm is not installed: pip install timm")

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warmup, by the stated rule in the global batch."""
        if self.base_batch is None or self.lr_rule == "none":
            return self.lr
        ratio = global_batch / self.base_batch
        return self.lr * {"linear": ratio, "sqrt": ratio**0.5}[self.lr_rule]

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this optimizer or learning-rate rule does not read."""
        own = {key for info in catalog.OPTIMIZERS.values() for key in info.uses}
        unread = own - set(catalog.OPTIMIZERS[self.name].uses)
        if self.lr_rule == "none":
            unread.add("base_batch")
        return {key: value for key in sorted(unread) if (value := getattr(self, key)) is not None}

    def without_ignored(self) -> OptimConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)

    def identity(self) -> dict[str, Any]:
        read = {*catalog.OPTIMIZERS[self.name].uses}
        own = {key for info in catalog.OPTIMIZERS.values() for key in info.uses}
        values = dataclasses.asdict(self.without_ignored())
        return {key: value for key, value in values.items() if key not in own or key in read}


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate after warmup, as a share of its peak."""

    __pydantic_config__ = STRICT
    name: str
    milestones: tuple[Float, ...] | None = None
    gamma: Float | None = None
    lr_end: Float | None = None

    def __post_init__(self) -> None:
        catalog.check_known("schedule", self.name, catalog.SCHEDULES)
        for key in self.uses:
            if getattr(self, key) is None:
                raise ValueError(
                    f"schedule.{key} has no value, and schedule={self.name} needs one: give schedule.{key}=..."
                )
        positive("schedule.gamma", self.gamma)
        positive("schedule.lr_end", self.lr_end)
        if self.milestones is not None:
            given = list(self.milestones)
            if given != sorted(set(given)) or not all(0 < value < 1 for value in given):
                raise ValueError(
                    f"schedule.milestones={given} are fractions of training: increasing, between 0 and 1 "
                    "([0.3, 0.6, 0.9] = epochs 30, 60, 90 of 100)"
                )

    @property
    def uses(self) -> tuple[str, ...]:
        return catalog.SCHEDULES[self.name].uses

    def ignored(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {
            key: value
            for key, value in values.items()
            if key != "name" and value is not None and key not in self.uses
        }

    def without_ignored(self) -> ScheduleConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **{key: getattr(self, key) for key in self.uses}}


MAX_LOSS = 1e6  # mean cross-entropy: a network that says nothing loses ln(classes), 7 for 1,000


@dataclass(frozen=True)
class RecipeConfig:
    """What shapes a step beside the optimizer; the same for every norm unless swept."""

    __pydantic_config__ = STRICT
    label_smoothing: Float
    zero_gamma: bool
    ema: Float | None
    accumulate: Int
    clip_norm: Float | None
    max_loss: Float | None = MAX_LOSS

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"recipe.label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(
                f"recipe.ema={self.ema} is the decay of the weights' moving average, a step: it must lie in "
                "(0, 1), such as 0.999; null for none"
            )
        positive("recipe.accumulate", self.accumulate)
        positive("recipe.clip_norm", self.clip_norm)
        positive("recipe.max_loss", self.max_loss)

    def identity(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if self.max_loss == MAX_LOSS:  # earlier identities do not name it
            del values["max_loss"]
        return values


def scheduled(config: ScheduleConfig, step: int, warmup: int, total: int, peak_lr: float) -> float:
    """The share of the peak learning rate at a step: linear from 1 / warmup in the warmup, then by the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.name == "step":
        assert config.milestones is not None and config.gamma is not None
        passed = sum(step >= round(milestone * total) for milestone in config.milestones)
        return config.gamma**passed
    if config.name == "range":
        assert config.lr_end is not None
        return (config.lr_end / peak_lr) ** progress
    return 1.0
