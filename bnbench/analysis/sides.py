"""Two sweeps side by side: what another machine, or another commit, made of the same runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from bnbench.analysis.answer import Interval, SideBySide
from bnbench.analysis.paired import Paired, holm, paired
from bnbench.analysis.statistics import LEVEL
from bnbench.records import FINISHED

if TYPE_CHECKING:
    import polars as pl

IDENTICAL, OPEN, BETTER, WORSE = "identical", "not distinguishable", "better", "worse"
MORE, FEWER = "more diverged", "fewer diverged"  # counted, not tested
ALONE, NOTHING = "one pair", "not measured"


@dataclass(frozen=True)
class _Run:
    error: float | None  # percent; None: it diverged, or has none
    step_ms: float | None
    diverged: bool


_Runs = dict[int, _Run]  # by seed


def side_by_side(sides: pl.DataFrame) -> list[SideBySide]:
    """Each cell that two folders hold, right against left. `sides`: `Collected.sides`, the runs of each folder.

    Errors and step times are each corrected over all of the rows.
    """
    folders: dict[str, dict[str, _Runs]] = {}
    for row in sides.iter_rows(named=True):
        if row["status"] in FINISHED:
            diverged = row["status"] == "diverged"
            run = _Run(None if diverged else row["val_error"], row["step_ms"], diverged)
            folders.setdefault(row["root"], {}).setdefault(row["cell"], {})[row["seed"]] = run
    shared = [
        (cell, left, right, _both(ours[cell], theirs[cell]))
        for (left, ours), (right, theirs) in combinations(folders.items(), 2)
        for cell in ours
        if cell in theirs and ours[cell].keys() & theirs[cell].keys()
    ]
    errors = [[] if _lost(pairs) else _differences(pairs) for *_, pairs in shared]
    speeds = [_logs(pairs) for *_, pairs in shared]
    found = [list(zip(values, _tested(values), strict=True)) for values in (errors, speeds)]
    return [
        SideBySide(
            cell=cell,
            left=left,
            right=right,
            pairs=len(pairs),
            difference=_interval(error[0], error[1][0]),
            p_holm=error[1][1],
            outcome=_lost_outcome(pairs) if _lost(pairs) else _outcome(error[0], *error[1]),
            speed=_ratio(_interval(speed[0], speed[1][0])),
            speed_p_holm=speed[1][1],
            speed_outcome=_outcome(speed[0], *speed[1]),
            note=_note(pairs) if _lost(pairs) else "",
        )
        for (cell, left, right, pairs), error, speed in zip(shared, *found, strict=True)
    ]


Pairs = list[tuple[_Run, _Run]]


def _both(left: _Runs, right: _Runs) -> Pairs:
    return [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]


def _differences(pairs: Pairs) -> list[float]:
    return [b.error - a.error for a, b in pairs if a.error is not None and b.error is not None]


def _logs(pairs: Pairs) -> list[float]:
    """Of the ratios of step times."""
    return [math.log(b.step_ms / a.step_ms) for a, b in pairs if a.step_ms and b.step_ms]


def _lost(pairs: Pairs) -> bool:
    """Whether a seed diverged in one of the folders: the rest of that side are a choice."""
    return any(a.diverged != b.diverged for a, b in pairs)


def _counts(pairs: Pairs) -> tuple[int, int]:
    return sum(a.diverged for a, _ in pairs), sum(b.diverged for _, b in pairs)


def _lost_outcome(pairs: Pairs) -> str:
    left, right = _counts(pairs)
    return MORE if right > left else FEWER if right < left else OPEN


def _note(pairs: Pairs) -> str:
    left, right = _counts(pairs)
    return f"diverged: {left} of {len(pairs)} left, {right} of {len(pairs)} right"


def _tested(rows: Sequence[Sequence[float]]) -> list[tuple[Paired | None, float | None]]:
    """Each row's differences with its p after the correction over all rows."""
    found = [paired(row) for row in rows]
    adjusted = iter(holm([one.p for one in found if one is not None]))
    return [(one, None if one is None else next(adjusted)) for one in found]


def _outcome(values: Sequence[float], found: Paired | None, p_holm: float | None) -> str:
    if not values:
        return NOTHING
    if not any(values):
        return IDENTICAL
    if len(values) == 1:
        return ALONE
    if found is None or p_holm is None or p_holm >= 1 - LEVEL or found.low <= 0 <= found.high:
        return OPEN
    return BETTER if found.mean < 0 else WORSE


def _interval(values: Sequence[float], found: Paired | None) -> Interval | None:
    if not values:
        return None
    if found is None:
        return Interval(math.fsum(values) / len(values), None, None, len(values))
    return Interval(found.mean, found.low, found.high, len(values))


def _ratio(logs: Interval | None) -> Interval | None:
    if logs is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.mean), low, high, logs.n)
