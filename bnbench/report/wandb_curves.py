"""The runs that W&B draws error against NBS of: what they hold, and sending them. No torch.

W&B draws lines of runs with a history, and a training run is one point of such a line. So each line of the page gets
a run for each seed, and one for its mean and interval, with a row for each NBS.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench import wandb_run
from bnbench.analysis.answer import Answer, CellView, Panel
from bnbench.curves import Point
from bnbench.records import Record, cell_of, digest
from bnbench.wandb_run import LostError

JOB = "curve"  # W&B's job type of these runs
AXIS = "curve/nbs"
ERROR = "curve/val_error"  # of one seed
MEAN, LOW, HIGH = "curve/mean", "curve/low", "curve/high"  # over seeds
DELETED = "previously created and deleted"  # W&B's words; it never takes such an id again
MOST_TRIED = 8  # editions of one run; one that was deleted takes `init_timeout` to be refused


@dataclass(frozen=True)
class CurveRun:
    """A line of a panel with one seed, or (`seed` None) its mean and 95% interval over seeds.

    `rows`: errors in percent by NBS.
    """

    panel: str
    line: str
    norm: str
    seed: int | None
    rows: Mapping[int, Point]

    @property
    def name(self) -> str:
        return f"{self.line} mean" if self.seed is None else f"{self.line} s{self.seed}"


def curve_runs(answer: Answer, records: Iterable[Record]) -> list[CurveRun]:
    """Of every line that has an error: its mean, then its seeds.

    A norm without NBS treats each image by itself: it has the same rows at every NBS of its panel, or at 1.
    """
    errors: dict[str, dict[int, float]] = {}
    for record in records:
        error = record.metrics.get("final_val_error")
        if record.status == "completed" and error is not None and math.isfinite(error):
            errors.setdefault(digest(cell_of(record.identity)), {})[record.identity["seed"]] = error
    return [run for panel in answer.panels for run in _of_panel(panel, errors)]


def _of_panel(panel: Panel, errors: Mapping[str, Mapping[int, float]]) -> Iterator[CurveRun]:
    sizes = sorted({cell.nbs for cell in panel.cells if cell.nbs is not None}) or [1]
    lines: dict[tuple[str, str], list[CellView]] = {}
    for cell in panel.cells:
        lines.setdefault((cell.line, cell.norm), []).append(cell)
    for (line, norm), cells in lines.items():
        rows: dict[int | None, dict[int, Point]] = {None: {}}
        for cell in cells:
            for nbs in sizes if cell.nbs is None else [cell.nbs]:
                if cell.error is not None:
                    ends = {LOW: cell.error.low, HIGH: cell.error.high}
                    known = {name: value for name, value in ends.items() if value is not None}
                    rows[None][nbs] = {MEAN: cell.error.mean, **known}
                for own, error in sorted(errors.get(cell.key, {}).items()):
                    rows.setdefault(own, {})[nbs] = {ERROR: error}
        for seed, points in rows.items():
            if points:
                yield CurveRun(panel.key, line, norm, seed, dict(sorted(points.items())))


class CurveRuns:
    """The curve runs of a report called `name` in a project of the server, as it has them.

    History cannot be changed. A run whose rows on the server are among ours gets the others; one that the server has
    other values of is sent anew, as the next edition: its id is a digest of what it is, and the edition. Older editions
    stay, since an id that was deleted is refused for ever; the report names the ids that it shows.
    """

    def __init__(
        self, api: Any, entity: str, project: str, name: str, init_timeout: float, finish_timeout: float
    ) -> None:
        self.api, self.entity, self.project, self.name = api, entity, project, name
        self.init_timeout, self.finish_timeout = init_timeout, finish_timeout
        self._newest: dict[str, int] = {}  # edition on the server, by stem of the id
        self._first = 0  # where new ones begin: beyond what was deleted
        with wandb_run.asking():
            there = wandb_run.runs_where(api, f"{entity}/{project}", jobType=JOB, group=name)
        for run in there:
            stem, _, edition = run.id.rpartition("-")
            if edition.isdigit():
                self._newest[stem] = max(int(edition), self._newest.get(stem, 0))

    def send_all(
        self, runs: Sequence[CurveRun], tell: Callable[[str], object]
    ) -> tuple[dict[str, CurveRun], int]:
        """The runs by the ids under which the server has them, and how many had to be sent; `tell` hears of each."""
        found, sent = {}, 0
        for run in runs:
            run_id, new = self.send(run)
            found[run_id] = run
            sent += new
            if new:
                tell(f"W&B: {run.name} sent")
        return found, sent

    def send(self, run: CurveRun) -> tuple[str, bool]:
        """The id under which the server has this run, and whether any of it had to be sent."""
        key = "/".join([self.name, run.panel, run.line, str(run.seed)])
        stem = hashlib.sha256(key.encode()).hexdigest()[:16]
        first = self._newest.get(stem, self._first)
        for edition in range(first, first + MOST_TRIED):
            run_id = f"{stem}-{edition}"
            known = self._rows(run_id)  # the list may lag behind
            if not all(nbs in run.rows and _equal(point, run.rows[nbs]) for nbs, point in known.items()):
                continue
            missing = {nbs: point for nbs, point in run.rows.items() if nbs not in known}
            if missing:
                try:
                    self._log(run_id, run, missing)
                except LostError as error:
                    if DELETED not in str(error):
                        raise
                    self._first = edition + 1
                    continue
            return run_id, bool(missing)
        raise LostError(f"W&B has other rows of {run.name} in {MOST_TRIED} editions, or has deleted them")

    def _rows(self, run_id: str) -> dict[int, Point]:
        with wandb_run.asking():
            found = wandb_run.find_run(self.api, f"{self.entity}/{self.project}/{run_id}")
            rows = [] if found is None else list(found.scan_history())
        metrics = (ERROR, MEAN, LOW, HIGH)
        return {
            int(row[AXIS]): {key: row[key] for key in metrics if key in row} for row in rows if AXIS in row
        }

    def _log(self, run_id: str, run: CurveRun, rows: Mapping[int, Point]) -> None:
        """Returns once the server has the run's rows: it is asked again."""
        config = {"panel": run.panel, "line": run.line, "norm": run.norm, "seed": run.seed}
        with wandb_run.asking(), tempfile.TemporaryDirectory(prefix="bnbench-report-") as folder:
            opened = wandb_run.open_run(
                "online",
                self.init_timeout,
                self.finish_timeout,
                Path(folder),
                axis=AXIS,
                entity=self.entity,
                project=self.project,
                id=run_id,
                name=run.name,
                group=self.name,
                job_type=JOB,
                config=config,
            )
            for nbs, point in rows.items():
                opened.log({AXIS: nbs, **point})
            opened.finish(exit_code=0)
        if self._rows(run_id).keys() != run.rows.keys():
            raise LostError(f"W&B has not taken all of {run.name}")


def _equal(one: Point, other: Point) -> bool:
    return one.keys() == other.keys() and all(math.isclose(one[key], other[key]) for key in one)
