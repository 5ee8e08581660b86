"""What a waiting person sees: cells done, each current run's epoch, images/s, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bnbench.config import RunConfig
from bnbench.records import RECORD, Record, read_record
from bnbench.swapped import changes


@dataclass
class _Current:
    """A run that is being trained: its bar, since when, and how much of it is done."""

    bar: TaskID
    started: float
    share: float = 0.0


class SweepProgress:
    """Bars on a terminal; elsewhere (a log file, CI) the one line that each finished run leaves.

    `apart`: by a run's folder, what tells it from others of its name (`sweep/names.py`). What the swap of norms changed
    stands once below the first run that it was changed in: only its record tells, as the ranks swap.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        quiet: bool = False,
        apart: Mapping[Path, Sequence[str]] | None = None,
    ) -> None:
        self.console = console or Console(soft_wrap=True, quiet=quiet)
        self.total, self.done = total, 0
        self.apart = apart or {}
        self._told: set[str] = set()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._sweep = self.bars.add_task("runs", total=total, detail="starting the ranks")
        self._current: dict[Path, _Current] = {}
        self._started = time.monotonic()

    def __enter__(self) -> SweepProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, config: RunConfig) -> None:
        now = time.monotonic()
        if not (self.done or self._current):
            self._started = now  # the ranks' start is no part of a run's pace
        bar = self.bars.add_task(self.name(config), total=None, detail="preparing")
        self._current[config.folder] = _Current(bar, now)

    def update(self, config: RunConfig, event: Mapping[str, Any]) -> None:
        """What a run has come to: its stage, or an event of a TrainingCurve (epoch, step, steps, images_per_s)."""
        current = self._current[config.folder]
        if "stage" in event:
            self.bars.update(current.bar, detail=event["stage"])
            return
        current.share = event["step"] / event["steps"]
        done = self.done + sum(each.share for each in self._current.values())
        seconds = (self.total - done) / done * (time.monotonic() - self._started)
        self.bars.update(
            current.bar,
            completed=event["step"],
            total=event["steps"],
            detail=f"steps, epoch {event['epoch'] + 1}, {event['images_per_s']:,.0f} images/s",
        )
        self.bars.update(self._sweep, detail=f"about {_duration(seconds)} left")

    def end(self, config: RunConfig, outcome: str) -> None:
        """`outcome` is a status, or why the run did not start."""
        self.done += 1
        self.bars.update(self._sweep, completed=self.done)
        seconds = self.drop(config)
        record = _record(config)
        self.say(
            f"[{self.done}/{self.total}] {self.name(config)}: {outcome}{_error(record)}, {seconds:.1f} s"
            + (f" ({config.data.label})" if config.data.label else "")
        )
        for change in [] if record is None else changes(record.norm_swap):
            line = f"  {config.kind} in {config.model.label}: {change}"
            if line not in self._told:
                self._told.add(line)
                self.say(line)

    def name(self, config: RunConfig) -> str:
        """As in the folder's name, and what tells it from other runs of that name."""
        return " ".join([config.run_name, *self.apart.get(config.folder, [])])

    def drop(self, config: RunConfig) -> float:
        """The run is no longer trained here; the seconds that it took."""
        current = self._current.pop(config.folder)
        self.bars.remove_task(current.bar)
        return time.monotonic() - current.started

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)


def _record(config: RunConfig) -> Record | None:
    try:
        return read_record(config.folder / RECORD)
    except ValueError:
        return None


def _error(record: Record | None) -> str:
    error = None if record is None else record.metrics.get("final_val_error")
    return "" if error is None else f", validation error {error:.2f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
