"""Training over time: each cell's validation curve, and how long it took to an error."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnbench.analysis.answer import Curve, Interval, TimeToTarget
from bnbench.analysis.files import Files
from bnbench.analysis.paired import paired
from bnbench.records import EPOCHS

if TYPE_CHECKING:
    import polars as pl

HOUR = 3600.0


@dataclass(frozen=True)
class Course:
    """The evaluations of one run: steps, epochs done, seconds of training until then, and errors in percent."""

    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    seconds: tuple[float, ...]
    errors: tuple[float, ...]
    world_size: int

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until the first evaluation at or below the target."""
        return next((s for s, error in zip(self.seconds, self.errors, strict=True) if error <= target), None)


def courses(runs: pl.DataFrame, files: Files) -> dict[str, list[Course]]:
    """The courses of the completed runs of each cell, from the files beside their records; one without is left out."""
    found: dict[str, list[Course]] = {}
    columns = runs.sort("seed").select("cell", "status", "path", "world_size")
    for cell, status, path, world_size in columns.iter_rows():
        if status == "completed" and (course := read_course(Path(path).with_name(EPOCHS), world_size, files)):
            found.setdefault(cell, []).append(course)
    return found


def read_course(path: Path, world_size: int, files: Files) -> Course | None:
    """None where the file is not there, or not such a file."""
    try:
        names, *rows = csv.reader(files.read(path).splitlines())
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        steps = tuple(map(int, columns["step"]))
        errors = tuple(map(float, columns["val_error"]))
        seconds = tuple(itertools.accumulate(map(float, columns["train_seconds"])))
        epochs = int(columns["epoch"][-1]) + 1  # the last evaluation ends the last epoch
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return None
    if min(steps) <= 0 or not all(map(math.isfinite, (*seconds, *errors))):
        return None
    return Course(steps, tuple(epochs * step / steps[-1] for step in steps), seconds, errors, world_size)


def curves(found: Mapping[str, Sequence[Course]]) -> list[Curve]:
    """The mean over seeds at the steps that all of a cell's runs were evaluated at."""
    return [curve for cell, own in found.items() if (curve := _curve(cell, own)) is not None]


def _curve(cell: str, own: Sequence[Course]) -> Curve | None:
    common = sorted(set.intersection(*(set(course.steps) for course in own)))
    if not common:
        return None
    places = [{step: i for i, step in enumerate(course.steps)} for course in own]
    at = [[place[step] for place in places] for step in common]
    both = [list(zip(own, indices, strict=True)) for indices in at]
    intervals = [interval([course.errors[i] for course, i in pairs]) for pairs in both]
    return Curve(
        cell=cell,
        step=tuple(common),
        epoch=tuple(own[0].epochs[indices[0]] for indices in at),
        seconds=tuple(math.fsum(course.seconds[i] for course, i in pairs) / len(pairs) for pairs in both),
        error=tuple(found.mean for found in intervals),
        low=tuple(found.low for found in intervals),
        high=tuple(found.high for found in intervals),
    )


def times_to(
    found: Mapping[str, Sequence[Course]], runs: Mapping[str, int], target: float
) -> list[TimeToTarget]:
    """For these cells with the number of their finished runs, those that diverged among them.

    The mean only where every one came to the target, for that of the others is a choice.
    """
    times = []
    for cell, finished in runs.items():
        own = found.get(cell, ())
        reached = [s for course in own if (s := course.seconds_to(target)) is not None]
        whole = bool(own) and len(reached) == finished
        times.append(
            TimeToTarget(
                cell=cell,
                target=target,
                reached=len(reached),
                runs=finished,
                seconds=interval(reached) if whole else None,
                device_hours=own[0].world_size * math.fsum(reached) / len(reached) / HOUR if whole else None,
            )
        )
    return times


def interval(values: Sequence[float]) -> Interval:
    """The mean of some seeds' numbers with its t interval."""
    found = paired(values)
    mean = math.fsum(values) / len(values)
    return Interval(mean, found.low if found else None, found.high if found else None, len(values))
