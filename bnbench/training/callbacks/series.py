"""What is measured now and then in training: kept on disk as it grows, and summed up at the end."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from bnbench.curves import append_rows, health_point
from bnbench.records import HEALTH

COLUMNS = ("step", "signal", "place", "value")
Row = tuple[int, str, str, float]


class Series:
    """Rows of `health.csv`: step, signal, place in the network, value; the same to the logger.

    The logger's `health/<signal>` is the median over places. Rank 0 has a `folder`; None elsewhere, where
    nothing is to be added.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: list[Row] = []

    def add(self, trainer: Trainer, step: int, signals: Mapping[str, Mapping[str, float]]) -> None:
        assert self.folder is not None
        rows = [(step, signal, place, value) for signal, at in signals.items() for place, value in at.items()]
        self._keep(rows)
        if trainer.logger is not None:
            written = [{**row, "value": float(row["value"])} for row in map(_as_written, rows)]
            trainer.logger.log_metrics(health_point(written), step=step)

    def _keep(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        if self.folder is not None:
            append_rows(self.folder / HEALTH, [_as_written(row) for row in rows])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows = [tuple(row) for row in state["rows"]]
        if rows:
            self._keep(rows)

    def medians(self) -> dict[str, dict[str, float]]:
        """Of each signal at each place, over the second half of its measurements; without what is not finite."""
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _, signal, place, value in self.rows:
            found[signal][place].append(value)
        return {
            signal: {
                place: statistics.median(late)
                for place, values in places.items()
                if (late := [value for value in values[len(values) // 2 :] if math.isfinite(value)])
            }
            for signal, places in found.items()
        }

    def typical(self, signal: str) -> float | None:
        """The median over all measurements of the median over places; None if there is no number, or no finite one.

        What is no number counts as infinite: an explosion must not leave the median of those without one.
        """
        at: dict[int, list[float]] = defaultdict(list)
        for step, name, _, value in self.rows:
            if name == signal:
                at[step].append(math.inf if math.isnan(value) else value)
        found = statistics.median(map(statistics.median, at.values())) if at else math.inf
        return found if math.isfinite(found) else None


def _as_written(row: Row) -> dict[str, Any]:
    """Six digits say all that there is to say."""
    step, signal, place, value = row
    return dict(zip(COLUMNS, (step, signal, place, f"{value:.6g}"), strict=True))
