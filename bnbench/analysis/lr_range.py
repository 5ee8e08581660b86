"""The largest stable learning rate of each cell, from LR range tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bnbench.analysis.statistics import LEVEL
from bnbench.records import Record, cell_of, digest, flatten, value_at

METRIC = "largest_stable_lr"
TABLE = "Largest stable learning rates"  # its heading on every page


def is_range(identity: Mapping[str, Any]) -> bool:
    """Whether a run, by its identity, was a range test: over when training diverges, and without an error to state."""
    return value_at(identity, "recipe.schedule.name") == "range"


@dataclass(frozen=True)
class StableRate:
    """`mean` is geometric over the seeds that have one; `low` and `high` its 95% t interval on a log scale.

    `at_end`: seeds that were stable to the end of the range, so that the true rate is larger.
    """

    flat: Mapping[str, Any]  # the cell's identity
    seeds: int
    none: int  # seeds without a stable rate
    mean: float | None
    low: float | None
    high: float | None
    at_end: int


def stable_rates(records: Iterable[Record]) -> list[StableRate]:
    """One for each cell of range tests, in the order of the records."""
    cells: dict[str, tuple[dict[str, Any], list[float | None], list[bool]]] = {}
    for record in records:
        if not is_range(record.identity):
            continue
        flat = flatten(cell_of(record.identity))
        value = record.metrics.get(METRIC)
        rate = float(value) if isinstance(value, int | float) and value > 0 else None
        _, rates, ends = cells.setdefault(digest(cell_of(record.identity)), (flat, [], []))
        rates.append(rate)
        ends.append(record.metrics.get("lr_range_exhausted") is True)
    return [_summary(*cell) for cell in cells.values()]


def _summary(flat: Mapping[str, Any], rates: list[float | None], ends: list[bool]) -> StableRate:
    logs = [math.log(rate) for rate in rates if rate is not None]
    mean, low, high = None, None, None
    if logs:
        middle = math.fsum(logs) / len(logs)
        mean = math.exp(middle)
        if len(logs) > 1:
            from scipy.special import stdtrit

            sd = math.sqrt(math.fsum((value - middle) ** 2 for value in logs) / (len(logs) - 1))
            half = float(stdtrit(len(logs) - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(len(logs))
            low, high = math.exp(middle - half), math.exp(middle + half)
    return StableRate(flat, len(rates), len(rates) - len(logs), mean, low, high, sum(ends))
