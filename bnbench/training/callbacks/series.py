"""What is measured now and then in training: kept on disk as it grows, and summed up at the end."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from bnbench.records import HEALTH

COLUMNS = ("step", "signal", "place", "value")
Row = tuple[int, str, str, float]
WHOLE = "model"  # the place of a signal that the network has as a whole


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
            point = {f"health/{s}/{place}": value for _, s, place, value in rows if place != WHOLE}
            for signal, at in signals.items():
                if finite := [value for value in at.values() if math.isfinite(value)]:
                    point[f"health/{signal}"] = statistics.median(finite)
            trainer.logger.log_metrics(point, step=step)

    def _keep(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        if self.folder is None:
            return
        with (self.folder / HEALTH).open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(COLUMNS)
            writer.writerows((step, signal, place, f"{value:.6g}") for step, signal, place, value in rows)

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
