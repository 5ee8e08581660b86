"""Replace every norm of a model in place, and say what was done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from .channel import largest_groups
from .registry import build_norm

REPLACEABLE = (nn.BatchNorm2d, nn.GroupNorm)  # our own batch kinds are BatchNorm2d


@dataclass
class Swap:
    """One replaced layer. `note` tells what had to differ from what was asked."""

    path: str
    old: str
    new: str
    num_features: int
    note: str = ""


@dataclass
class SwapReport:
    """What `swap_norms` did to a model."""

    kind: str
    replaced: list[Swap] = field(default_factory=list)

    def notes(self) -> list[str]:
        return [f"{swap.path}: {swap.note}" for swap in self.replaced if swap.note]

    def as_dict(self) -> dict[str, Any]:
        """For the record: counts and notes, not every layer."""
        first = asdict(self.replaced[0]) if self.replaced else None
        return {"kind": self.kind, "replaced": len(self.replaced), "first": first, "notes": self.notes()}


def swap_norms(model: nn.Module, kind: str, **options: Any) -> SwapReport:
    """Replace every BatchNorm2d and GroupNorm inside `model` by `build_norm(kind, C, **options)`.

    Keeps device, dtype, train or eval mode, and parameters and running statistics of equal shape.
    Where `num_groups` does not divide a layer's channels the largest divisor below it is taken, and noted.
    Raises ValueError if the model has no norm to replace, or is one itself (nothing holds it).
    """
    report = SwapReport(kind)
    for path, old in list(model.named_modules()):
        if not isinstance(old, REPLACEABLE):
            continue
        if not path:
            raise ValueError("swap_norms: the model is a norm itself; call build_norm instead")
        num_features = old.num_features if isinstance(old, nn.BatchNorm2d) else old.num_channels
        fitted, note = _fit(options, num_features)
        new = build_norm(kind, num_features, **fitted)
        _carry_over(old, new)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
        report.replaced.append(Swap(path, type(old).__name__, type(new).__name__, num_features, note))
    if not report.replaced:
        raise ValueError(f"swap_norms: {type(model).__name__} holds no BatchNorm2d or GroupNorm to replace")
    return report


def _fit(options: dict[str, Any], num_features: int) -> tuple[dict[str, Any], str]:
    asked = options.get("num_groups")
    if asked is None or asked < 1 or num_features % asked == 0:
        return options, ""
    groups = largest_groups(num_features, asked)
    return {**options, "num_groups": groups}, f"num_groups {groups}, not {asked}: {num_features} channels"


def _carry_over(old: nn.Module, new: nn.Module) -> None:
    reference = next(iter([*old.parameters(), *old.buffers()]), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    kept = old.state_dict()
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name in kept and kept[name].shape == tensor.shape:
                tensor.copy_(kept[name])
    new.train(old.training)
