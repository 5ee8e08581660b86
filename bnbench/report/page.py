"""report.md: the table and the figure with what they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bnbench.analysis.statistics import STATUSES
from bnbench.records import Record
from bnbench.report import claims, published, sides, table, verdict
from bnbench.report.context import PageContext
from bnbench.report.numbers import count, short

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.answer import Answer
    from bnbench.analysis.collect import Collected


def page(collected: Collected, cells: pl.DataFrame, answer: Answer, said: PageContext, figure: str) -> str:
    """The report as markdown. The verdict in words first, then what it rests on."""
    runs = collected.runs
    models, data, norms = (", ".join(dict.fromkeys(cells[key])) for key in ("model", "data", "norm"))
    parts = [
        "# Normalization and batch size: validation error\n",
        f"{models} on {data} with {norms}: {count(runs.height, 'run')} in {count(cells.height, 'cell')} "
        "(a cell holds the runs that differ only by seed).\n",
        f"{said.about}.\n" if said.about else "",
        verdict.section(answer),
        "## Result\n",
        table.markdown(cells),
        f"{table.LEGEND} The interval covers the seeds' variation and nothing else: not another data set, "
        "recipe or machine.\n",
        f"![validation error against normalization batch size]({figure})\n",
        verdict.table(answer),
        sides.section(answer),
        published.section(answer),
        claims.section(said.claims),
        said.tuning,
        said.fairness,
        "## Runs\n",
        f"Status: {_statuses(runs)}. Only completed runs enter a mean; every other run is counted in the "
        "table. The numbers in full: [cells.csv](cells.csv), [runs.csv](runs.csv).\n",
        _failures(collected.records),
        "## Settings\n",
        "The same in all rows of the table (in all rows of one norm, where it is named):\n",
        _pairs(said.settings),
        "## Provenance\n",
        _pairs(said.provenance) or "The records state none.\n",
        _bullets("## Notes on the records\n", said.problems),
        "## This report again\n",
        f"```\n{said.command}\n```\n",
    ]
    return "\n".join(part for part in parts if part)


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


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"- {key}: `{value}`\n" for key, value in pairs)


def _bullets(heading: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    listed = "".join(f"- {short(line)}\n" for line in lines)
    return f"{heading}\n{listed}" if heading else listed
