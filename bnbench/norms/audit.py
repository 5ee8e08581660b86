"""What a swap did to a model: for a reader as a table, for the record as counts and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .residual import ResidualInit


@dataclass
class Swap:
    """One replaced layer. `note` tells what had to differ from what was asked."""

    path: str
    old: str
    new: str
    num_features: int
    note: str = ""


@dataclass
class Skip:
    """One norm that stayed as it is."""

    path: str
    kind: str
    reason: str


@dataclass
class SwapReport:
    """What `swap_norms` did. Prints as a table; `as_dict` goes into the record.

    parameters, buffers: by how many numbers the model grew. groups_changed: asked to taken group count, by
    path. activations_removed: norms whose ReLU was taken out. without_activation: norms run with `act=False`,
    with the reason. standardized, not_standardized: convolutions; `restored` those made plain again.
    not_carried: names of the old layers' tensors that the new ones have no place for, and how many; `fresh`
    those of the new that no old one filled. general: what concerns the model as a whole.
    """

    kind: str
    model: str = ""
    replaced: list[Swap] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    parameters: int = 0
    buffers: int = 0
    groups_changed: dict[str, tuple[int, int]] = field(default_factory=dict)
    activations_removed: list[str] = field(default_factory=list)
    without_activation: dict[str, str] = field(default_factory=dict)
    standardized: list[str] = field(default_factory=list)
    not_standardized: dict[str, str] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    not_carried: Counter[str] = field(default_factory=Counter)
    fresh: Counter[str] = field(default_factory=Counter)
    init: ResidualInit | None = None
    placement: str = "before"
    general: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Each note with the layers that it is about."""
        paths: dict[str, list[str]] = {}
        for swap in self.replaced:
            if swap.note:
                paths.setdefault(swap.note, []).append(swap.path)
        return [f"{_first(held)}: {note}" for note, held in paths.items()] + self.general

    def __str__(self) -> str:
        head = f"{self.model}: {len(self.replaced)} norms replaced by {self.kind}"
        rows = [("layers", "channels", "old", "new", "where", "note")]
        groups: dict[tuple[str, ...], list[str]] = {}
        for swap in self.replaced:
            groups.setdefault((str(swap.num_features), swap.old, swap.new, swap.note), []).append(swap.path)
        for (channels, old, new, note), paths in groups.items():
            rows.append((str(len(paths)), channels, old, new, _first(paths), note))
        return "\n".join([head, *_aligned(rows), *self._summary()])

    def _summary(self) -> list[str]:
        lines = [f"numbers: parameters {self.parameters:+,}, buffers {self.buffers:+,}"]
        skips: dict[tuple[str, str], list[str]] = {}
        for skip in self.skipped:
            skips.setdefault((skip.kind, skip.reason), []).append(skip.path)
        for (kind, reason), paths in skips.items():
            lines.append(f"skipped: {len(paths)} {kind} ({_first(paths)}): {reason}")
        if self.activations_removed or self.without_activation:
            lines.append(
                f"activations: {len(self.activations_removed)} ReLUs removed, their norms include them; "
                f"{len(self.without_activation)} norms run with act=False"
            )
        if self.standardized or self.not_standardized:
            lines.append(f"weight standardization: {len(self.standardized)} convolutions")
            reasons: dict[str, list[str]] = {}
            for path, reason in self.not_standardized.items():
                reasons.setdefault(reason, []).append(path)
            lines.extend(f"  not {_first(paths)}: {reason}" for reason, paths in reasons.items())
        if self.restored:
            lines.append(f"weight standardization: taken off {len(self.restored)} convolutions")
        if self.not_carried:
            lines.append(f"not carried over: {_counted(self.not_carried)}")
        if self.fresh:
            lines.append(f"starting anew: {_counted(self.fresh)}")
        if self.init is not None:
            lines.append(str(self.init))
        if self.placement != "before":
            lines.append(f"placement: {self.placement} the activation, as before the swap")
        return lines + self.general

    def as_dict(self) -> dict[str, Any]:
        """For the record: counts and notes, not every layer."""
        return {
            "kind": self.kind,
            "replaced": len(self.replaced),
            "first": asdict(self.replaced[0]) if self.replaced else None,
            "skipped": dict(Counter(f"{skip.kind}: {skip.reason}" for skip in self.skipped)),
            "parameters": self.parameters,
            "buffers": self.buffers,
            "groups_changed": len(self.groups_changed),
            "activations_removed": len(self.activations_removed),
            "without_activation": len(self.without_activation),
            "standardized": len(self.standardized),
            "not_standardized": len(self.not_standardized),
            "not_carried": dict(self.not_carried),
            "fresh": dict(self.fresh),
            "init": None if self.init is None else self.init.as_dict(),
            "placement": self.placement,
            "notes": self.notes(),
        }


def _first(paths: list[str]) -> str:
    return ", ".join(paths) if len(paths) < 3 else f"{paths[0]} and {len(paths) - 1} more"


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} of {count} layers" for name, count in names.items())


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i < 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
