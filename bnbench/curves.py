"""The curves of a run: the rows of its files, and the points that W&B shows, one a step, made of them. No torch.

What is logged while a run trains and what is made of its files afterwards are the same points, by the same functions.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnbench.records import CURVE, EPOCHS, HEALTH

Point = dict[str, float]  # a name as W&B shows it -> its value at a step
STEP = "trainer/global_step"
WHOLE = "model"  # the place of a signal that the network has as a whole
NAMES = ("signal", "place")  # columns that hold names; the others hold numbers

WINDOWS = {
    "loss": "train/loss",
    "error": "train/error",
    "lr": "lr",
    "images_per_s": "throughput/images_per_s",
}
EVALUATIONS = {
    "epoch": "epoch",
    "val_loss": "val/loss",
    "val_error": "val/error",
    "train_loss": "train/epoch_loss",
    "train_error": "train/epoch_error",
}


def window_point(row: Mapping[str, Any]) -> Point:
    """Of a row of `curve.csv`: a window of training steps."""
    return _named(row, WINDOWS)


def evaluation_point(row: Mapping[str, Any]) -> Point:
    """Of a row of `epochs.csv`: an evaluation, and the training since the one before."""
    return _named(row, EVALUATIONS)


def health_point(rows: Iterable[Mapping[str, Any]]) -> Point:
    """Of the rows of `health.csv` at one step: each signal at each place, and its median over places."""
    point: Point = {}
    signals: dict[str, list[float]] = {}
    for row in rows:
        signal, place, value = row["signal"], row["place"], row["value"]
        if math.isfinite(value):
            signals.setdefault(signal, []).append(value)
            if place != WHOLE:
                point[f"health/{signal}/{place}"] = value
    return point | {f"health/{signal}": statistics.median(values) for signal, values in signals.items()}


def points(folder: Path) -> dict[int, Point]:
    """The points of a run by step, in the order of steps, from the files in its folder; those that are there.

    A row that a kill has cut off is left out. What is not finite is in the files alone: wandb-core writes it as
    `NaN`, which is no JSON, and a run whose summary holds that cannot be resumed.
    """
    found: dict[int, Point] = {}
    for row in read_rows(folder / CURVE):
        found.setdefault(int(row["step"]), {}).update(window_point(row))
    for row in read_rows(folder / EPOCHS):
        found.setdefault(int(row["step"]), {}).update(evaluation_point(row))
    health: dict[int, list[dict[str, Any]]] = {}
    for row in read_rows(folder / HEALTH):
        health.setdefault(int(row["step"]), []).append(row)
    for step, rows in health.items():
        found.setdefault(step, {}).update(health_point(rows))
    return {step: found[step] for step in sorted(found) if found[step]}


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a file of a run, which their keys head."""
    if not rows:
        return
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a file, numbers as numbers and names as they are; none if there is no such file."""
    if not path.exists():
        return
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(whole.splitlines()):
        yield {key: value if key in NAMES else _number(value) for key, value in row.items()}


def _named(row: Mapping[str, Any], names: Mapping[str, str]) -> Point:
    return {name: row[key] for key, name in names.items() if math.isfinite(row[key])}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
