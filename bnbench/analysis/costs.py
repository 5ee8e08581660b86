"""What a norm adds to a step: against the same network without norms, and in collectives."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnbench.analysis.answer import NormCost, Panel
from bnbench.analysis.progress import interval

if TYPE_CHECKING:
    import polars as pl

CONTROL = "none"  # the norm that computes nothing


def norm_costs(panel: Panel, runs: pl.DataFrame) -> list[NormCost]:
    """One for each cell of the panel with a step time. `runs`: `Collected.runs`."""
    steps: dict[str, list[float]] = {}
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for cell, status, step_ms, speed in runs.select("cell", "status", "step_ms", "speed").iter_rows():
        if status == "completed" and step_ms is not None:
            steps.setdefault(cell, []).append(step_ms)
            if speed is not None:
                measured.setdefault(cell, []).append(json.loads(speed))
    control = next((cell for cell in panel.cells if cell.norm == CONTROL and cell.key in steps), None)
    control_ms = None if control is None else interval(steps[control.key]).mean
    found = []
    for cell in panel.cells:
        if cell.key in steps:
            looks = measured.get(cell.key, [])
            step = interval(steps[cell.key])
            added = None if control_ms is None else step.mean - control_ms
            found.append(
                NormCost(
                    cell=cell.key,
                    step_ms=step,
                    control_ms=control_ms,
                    added_ms=added,
                    share=None if added is None else added / step.mean,
                    collectives=_median([_norms(look, "count") for look in looks]),
                    bytes=_median([_norms(look, "bytes") for look in looks]),
                    parts=_parts(looks),
                    mfu=_median([_real(look.get("mfu")) for look in looks]),
                )
            )
    return found


def _norms(look: Mapping[str, Any], key: str) -> float | None:
    """The norms' own collectives of a step, over all kinds."""
    kinds = look.get("collectives")
    if not isinstance(kinds, Mapping):
        return None
    own = kinds.get("norm", {})
    return float(sum(_real(kind.get(key)) or 0.0 for kind in own.values() if isinstance(kind, Mapping)))


def _parts(looks: list[Mapping[str, Any]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for look in looks for name in look.get("parts_ms", {})))
    medians = {name: _median([_real(look.get("parts_ms", {}).get(name)) for look in looks]) for name in names}
    return {name: value for name, value in medians.items() if value is not None}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
