"""report.md: the table and the figure with what they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bnbench.analysis.statistics import STATUSES, shared
from bnbench.records import Record, flatten
from bnbench.report import claims, fairness, published, sides, table, tuning, verdict
from bnbench.report.about import about
from bnbench.report.numbers import short
from bnbench.waiting import data_wait_remark

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.answer import Answer
    from bnbench.analysis.claims import ClaimResult
    from bnbench.analysis.collect import Collected

MOST_VALUES = 3  # of one provenance key; beyond that, how many there are


def page(
    command: str,
    collected: Collected,
    cells: pl.DataFrame,
    answer: Answer,
    figure: str,
    results: Sequence[ClaimResult] = (),
) -> str:
    """The report as markdown. The verdict in words first, then what it rests on."""
    runs = collected.runs
    models, data, norms = (", ".join(dict.fromkeys(cells[key])) for key in ("model", "data", "norm"))
    parts = [
        "# Normalization and batch size: validation error\n",
        f"{models} on {data} with {norms}: {_count(runs.height, 'run')} in {_count(cells.height, 'cell')} "
        "(a cell holds the runs that differ only by seed).\n",
        f"{said}.\n" if (said := about(collected.records)) else "",
        verdict.section(answer),
        "## Result\n",
        table.markdown(cells),
        f"{table.LEGEND} The interval covers the seeds' variation and nothing else: not another data set, "
        "recipe or machine.\n",
        f"![validation error against normalization batch size]({figure})\n",
        verdict.table(answer),
        sides.section(answer),
        published.section(answer),
        claims.section(results),
        tuning.section(runs, collected.records),
        fairness.section(collected.records),
        "## Runs\n",
        f"Status: {_statuses(runs)}. Only completed runs enter a mean; every other run is counted in the "
        "table. The numbers in full: [cells.csv](cells.csv), [runs.csv](runs.csv).\n",
        _failures(collected.records),
        "## Settings\n",
        "The same in all rows of the table (in all rows of one norm, where it is named):\n",
        _pairs(sorted(shared(runs).items())),
        "## Provenance\n",
        _pairs(provenance(collected.records)) or "The records state none.\n",
        _bullets("## Notes on the records\n", notes(collected)),
        "## This report again\n",
        f"```\n{command}\n```\n",
    ]
    return "\n".join(part for part in parts if part)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _statuses(runs: pl.DataFrame) -> str:
    counts = Counter(runs["status"])
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def _failures(records: Iterable[Record]) -> str:
    """What the runs that did not complete said."""
    lines = [
        f"{r.name}: {r.status}" + (f": {r.error}" if r.error else "")
        for r in records
        if r.status != "completed"
    ]
    return _bullets("", lines)


def notes(collected: Collected) -> list[str]:
    """What to know of the records: those that are not used, or are incomplete, and runs that waited for their data."""
    remark = data_wait_remark(collected.records)
    return [*collected.problems, *([] if remark is None else [remark])]


def provenance(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Each key of the records' provenance with its values; records of any shape are read."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in flatten(record.provenance).items():
            if value is not None:
                values.setdefault(key, Counter())[str(value)] += 1
    pairs = []
    for key, found in sorted(values.items()):
        if key == "written":
            pairs.append((key, " to ".join(sorted({min(found), max(found)}))))
            continue
        if len(found) > MOST_VALUES:
            pairs.append((key, f"{len(found)} different"))
            continue
        some = [
            short(value) + (f" ({_count(n, 'run')})" if len(found) > 1 else "") for value, n in found.items()
        ]
        pairs.append((key, "; ".join(some)))
    return pairs


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"- {key}: `{value}`\n" for key, value in pairs)


def _bullets(heading: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    listed = "".join(f"- {short(line)}\n" for line in lines)
    return f"{heading}\n{listed}" if heading else listed
