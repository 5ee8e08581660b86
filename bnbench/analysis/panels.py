"""Cells that may be compared, side by side: one panel for each model, data and other setting that varies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnbench.analysis.answer import CellView, Interval, Panel
from bnbench.analysis.lr_range import is_range
from bnbench.analysis.statistics import STATUSES, factors
from bnbench.span import span_of

if TYPE_CHECKING:
    import polars as pl

HEADINGS = {"world_size": "ranks", "global_batch": "global batch", "per_device_batch": "batch/device"}
HEADINGS |= {"recipe.name": "optimizer", "recipe.schedule.name": "schedule", "recipe.eps": "optimizer eps"}
OPTIMIZER = "recipe.name"
Row = Mapping[str, Any]
MEMORY_NOISE = 0.05  # a share


def heading(key: str) -> str:
    """What people call a factor: `ranks`, `lr`, `norm eps`."""
    return HEADINGS.get(key, key.removeprefix("recipe.").replace(".", " "))


def panels(runs: pl.DataFrame, cells: pl.DataFrame) -> list[Panel]:
    """From `Collected.runs` and `statistics.cells`, in the order of the cells; nothing is compared yet.

    A norm's own settings make lines of a panel, all other factors panels.
    """
    varying = factors(cells)
    outer = [key for key in varying if key != "data" and not key.startswith("norm.")]
    outer = [key for key in outer if not _follows(cells, key)]
    inner = [key for key in varying if key.startswith("norm.")]
    costs = {row["cell"]: row for row in _costs(runs).iter_rows(named=True)}
    errors = errors_by_seed(runs)
    ranged = {
        cell
        for cell, text in runs.select("cell", "identity").unique().iter_rows()
        if is_range(json.loads(text))
    }
    found: dict[str, list[CellView]] = {}
    for row in cells.iter_rows(named=True):
        settings = {heading(key): str(row[key]) for key in outer if row[key] is not None}
        words = [f"{key} {value}" for key, value in settings.items()]
        title = ", ".join([f"{row['model']} on {row['data']}", *words])
        own = [f"{key.removeprefix('norm.')} {row[key]}" for key in inner if row[key] is not None]
        cell = _view(row, title, " ".join([row["norm"], ", ".join(own)]).strip())
        cost = costs[row["cell"]]
        cell = replace(
            cell,
            settings=settings,
            errors=tuple(errors.get(row["cell"], {}).values()),
            images_per_s=row["images_per_s"],
            ranged=row["cell"] in ranged,
            **{key: cost[key] for key in ("step_ms", "peak_bytes", "gpu_hours")},
        )
        found.setdefault(title, []).append(cell)
    return [Panel(title, title, _fronted(own_cells)) for title, own_cells in found.items()]


def _follows(cells: pl.DataFrame, key: str) -> bool:
    """Whether a key says no more than the optimizer does: not all of them have it, and each that does has one value."""
    if not key.startswith("recipe.") or key == OPTIMIZER or OPTIMIZER not in cells.columns:
        return False
    found: dict[str, set[str | None]] = {}
    for name, value in cells.select(OPTIMIZER, key).iter_rows():
        found.setdefault(name, set()).add(value)
    return {None} in found.values() and all(len(values) == 1 for values in found.values())


def errors_by_seed(runs: pl.DataFrame) -> dict[str, dict[int, float]]:
    """The error in percent of each completed run, by cell and seed, in the order of the seeds."""
    found: dict[str, dict[int, float]] = {}
    for cell, seed, status, error in (
        runs.select("cell", "seed", "status", "val_error").sort("seed").iter_rows()
    ):
        if status == "completed" and error is not None:
            found.setdefault(cell, {})[seed] = error
    return found


def span_kind(row: Row) -> str | None:
    """How a cell's NBS is reached: ghost, device, group or world; None without NBS."""
    nbs, device = row["nbs"], row["per_device_batch"]
    if nbs is None:
        return None
    try:
        return span_of(nbs, device, row["world_size"]).kind
    except ValueError:  # another version knew how
        return "ghost" if nbs < device else "device" if nbs == device else "group"


def _view(row: Row, panel: str, line: str) -> CellView:
    mean = row["mean"]
    return CellView(
        key=row["cell"],
        panel=panel,
        line=line,
        norm=row["norm"],
        nbs=row["nbs"],
        span=span_kind(row),
        settings={},
        error=None if mean is None else Interval(mean, row["low"], row["high"], row["seeds"]),
        errors=(),
        statuses={status: row[status] for status in STATUSES if row[status]},
    )


def _costs(runs: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    done = pl.col("status") == "completed"
    return runs.group_by("cell").agg(
        pl.col("step_ms").filter(done).mean(),
        pl.col("peak_bytes").filter(done).median(),
        pl.when(pl.col("fit_seconds").is_not_null().any())
        .then((pl.col("fit_seconds") * pl.col("world_size")).sum() / 3600)
        .alias("gpu_hours"),
    )


def _fronted(cells: Sequence[CellView]) -> tuple[CellView, ...]:
    """Marks Pareto's front: no other cell is at least as good in error, step time and memory, and better in one.

    Memory counts where all are known and differ by more than MEMORY_NOISE: what a CPU's process holds is mostly
    libraries.
    """
    held = [cell.peak_bytes for cell in cells if cell.error is not None and cell.step_ms is not None]
    known = [size for size in held if size]
    by_memory = bool(known) and len(known) == len(held) and max(known) > (1 + MEMORY_NOISE) * min(known)
    points = {cell.key: point for cell in cells if (point := _point(cell, by_memory)) is not None}

    def beaten(one: tuple[float, ...]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in points.values()
        )

    return tuple(
        replace(cell, on_front=cell.key in points and not beaten(points[cell.key])) for cell in cells
    )


def _point(cell: CellView, by_memory: bool) -> tuple[float, ...] | None:
    if cell.error is None or cell.step_ms is None:
        return None
    return cell.error.mean, cell.step_ms, (cell.peak_bytes or 0.0) if by_memory else 0.0
