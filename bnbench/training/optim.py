"""The recipe: parameter groups, optimizer, learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bnbench import catalog
from bnbench.config import OptimConfig, RunConfig
from bnbench.config.optim import scheduled
from bnbench.norms.base import NORM_TYPES


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_norm: bool, decay_bias: bool = True
) -> list[dict[str, Any]]:
    """Groups by module type, never by name: norms' own parameters, the rest, and without `decay_bias` its biases."""
    owned = (p for m in model.modules() if isinstance(m, NORM_TYPES) for p in m.parameters(recurse=False))
    norm = list(dict.fromkeys(owned))  # once, should two norms share it
    known = {id(p) for p in norm}
    rest = [p for p in model.parameters() if id(p) not in known]
    biases = [] if decay_bias else [p for p in rest if p.dim() <= 1]
    apart = {id(p) for p in biases}
    groups = [
        {"params": [p for p in rest if id(p) not in apart], "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0},
        {"params": norm, "weight_decay": weight_decay if decay_norm else 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, config: RunConfig, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """The optimizer over the model's groups, and its schedule in optimizer steps."""
    optim = config.optim
    # LARS rescales what decays: biases neither, as You et al. have it.
    groups = parameter_groups(model, optim.weight_decay, optim.decay_norm, decay_bias=optim.name != "lars")
    peak = optim.peak_lr(config.global_batch)
    warmup, total = round(optim.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    optimizer = _optimizer(groups, peak, optim)
    return optimizer, LambdaLR(optimizer, lambda step: scheduled(config.schedule, step, warmup, total, peak))


def _optimizer(groups: list[dict[str, Any]], lr: float, config: OptimConfig) -> torch.optim.Optimizer:
    read = {key: getattr(config, key) for key in catalog.OPTIMIZERS[config.name].uses}
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, **read)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, **read)
    from timm.optim import Lars

    # It rescales the groups that decay and leaves the others alone.
    return Lars(groups, lr=lr, trust_coeff=read.pop("trust"), **read)
