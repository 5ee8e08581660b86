"""What both pages say of the records themselves, gathered once: runs with their links, health, provenance."""

from __future__ import annotations

import os
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench.analysis.question import DEFAULT, Question
from bnbench.analysis.statistics import shared
from bnbench.records import Record, flatten
from bnbench.report import fairness, table, tuning
from bnbench.report.about import about
from bnbench.report.context import HealthRow, PageContext, RunRow
from bnbench.report.numbers import count, short
from bnbench.waiting import data_wait_remark

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.claims import ClaimResult
    from bnbench.analysis.collect import Collected

SIGNALS = ("drift_mean", "drift_var", "rank_spread", "eval_gap")
STATISTICS = ("running", "precise", "batch")
MOST_VALUES = 3  # of one provenance key; beyond that, how many there are


def context(
    roots: Sequence[Path],
    out: Path,
    question: Question,
    collected: Collected,
    cells: pl.DataFrame,
    results: Sequence[ClaimResult],
    files: Sequence[str],
) -> PageContext:
    """For a page in the folder `out`, beside `files`."""
    runs = collected.runs
    return PageContext(
        command=_command(roots, out, question),
        about=about(collected.records),
        claims=results,
        fairness=fairness.section(collected.records),
        tuning=tuning.section(runs, collected.records),
        health=_health(runs, collected.records, cells["cell"]),
        settings=sorted(shared(runs).items()),
        provenance=_provenance(collected.records),
        runs=_runs(collected, out),
        problems=_notes(collected),
        labels=table.labels(cells),
        files={name: name for name in files},
    )


def _command(roots: Sequence[Path], out: Path, question: Question) -> str:
    """What makes this report again."""
    words = ["bnbench", "report", *map(str, roots), "--out", str(out)]
    for key in ("baseline", "target", "resolve", "family"):
        value = getattr(question, key)
        if value != getattr(DEFAULT, key):
            words += [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _provenance(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Each key of the records' provenance with its values; records of any shape are read."""
    values: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for key, value in flatten(record.provenance).items():
            if value is not None:
                values[key][str(value)] += 1
    pairs = []
    for key, found in sorted(values.items()):
        if key == "written":
            pairs.append((key, " to ".join(sorted({min(found), max(found)}))))
            continue
        if len(found) > MOST_VALUES:
            pairs.append((key, f"{len(found)} different"))
            continue
        some = [
            short(value) + (f" ({count(n, 'run')})" if len(found) > 1 else "") for value, n in found.items()
        ]
        pairs.append((key, "; ".join(some)))
    return pairs


def _notes(collected: Collected) -> list[str]:
    """What to know of the records: those that are not used, or are incomplete, and runs that waited for their data."""
    remark = data_wait_remark(collected.records)
    return [*collected.problems, *([] if remark is None else [remark])]


def _runs(collected: Collected, out: Path) -> list[RunRow]:
    runs = collected.runs
    folders = {root: os.path.relpath(root, out) for root in runs["root"].unique()}
    return [
        _run(record, os.path.normpath(f"{folders[root]}/{path.removeprefix(f'{root}/')}"), error)
        for record, root, path, error in zip(
            collected.records, runs["root"], runs["path"], runs["val_error"], strict=True
        )
    ]


def _run(record: Record, path: str, error: float | None) -> RunRow:
    done = record.status == "completed"
    url = record.wandb.get("url")
    return RunRow(
        name=record.name,
        status=record.status,
        record=path,
        val_error=error if done else None,
        message=None if done else record.error,
        wandb=url if isinstance(url, str) else None,
    )


def _health(runs: pl.DataFrame, records: Sequence[Record], order: Iterable[str]) -> list[HealthRow]:
    """A row for each cell of which a completed run has any signal, in the order of all cells."""
    found: dict[str, list[dict[str, float]]] = {}
    for cell, record in zip(runs["cell"], records, strict=True):
        if record.status == "completed":
            found.setdefault(cell, []).append(_signals(record))
    rows = []
    for cell in order:
        of_runs = found.get(cell, [])
        names = dict.fromkeys(name for signals in of_runs for name in signals)
        medians = {name: statistics.median(s[name] for s in of_runs if name in s) for name in names}
        if medians:
            rows.append(HealthRow(cell, **medians))
    return rows


def _signals(record: Record) -> dict[str, float]:
    """The errors under each kind of statistics, and each signal's median over the places that it was measured at."""
    errors = {name: record.metrics.get(f"val_error_{name}") for name in STATISTICS}
    signals = {name: _median(record.health.get(name)) for name in SIGNALS}
    return {
        name: float(value) for name, value in (errors | signals).items() if isinstance(value, int | float)
    }


def _median(places: Any) -> float | None:
    if not isinstance(places, Mapping):
        return None
    values = [value for value in places.values() if isinstance(value, int | float)]
    return statistics.median(values) if values else None
