"""The recipe: parameter groups, optimizer, learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bnbench.config import OptimConfig
from bnbench.norms.base import NORM_TYPES


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm: bool) -> list[dict[str, Any]]:
    """Two groups by module type, never by name: norms' own parameters, and the rest."""
    owned = (p for m in model.modules() if isinstance(m, NORM_TYPES) for p in m.parameters(recurse=False))
    norm = list(dict.fromkeys(owned))  # once, should two norms share it
    known = {id(p) for p in norm}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": rest, "weight_decay": weight_decay},
        {"params": norm, "weight_decay": weight_decay if decay_norm else 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The share of the peak learning rate at a step: linear from 1 / warmup_steps, then cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, global_batch: int, epochs: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """SGD over the model's groups, and its schedule in steps."""
    optimizer = torch.optim.SGD(
        parameter_groups(model, config.weight_decay, config.decay_norm),
        lr=config.peak_lr(global_batch),
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    warmup, total = round(config.warmup_epochs * steps_per_epoch), epochs * steps_per_epoch
    return optimizer, LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
