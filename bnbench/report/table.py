"""The table of cells, for a terminal and as markdown. Its numbers in full are in cells.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnbench import catalog
from bnbench.analysis.panels import heading, span_kind
from bnbench.analysis.statistics import MISSED, factors

if TYPE_CHECKING:
    import polars as pl

_RIGHT = ("NBS", "seeds", "val. error %", "images/s", "ranks", "global batch", "batch/device")
NOTHING = "–"

LEGEND = (
    "NBS: images that share statistics. val. error: mean ± half of the 95% t interval over seeds "
    "(completed runs only). images/s: median over seeds, all ranks together."
)


def people(cells: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The headings and rows that people read, one row per row of `statistics.cells`."""
    extra = factors(cells)
    half = (cells["high"] - cells["mean"]).drop_nulls()
    # One number of decimals down the column: enough for its narrowest interval.
    decimals = 2 if half.len() and half.min() < 0.1 else 1  # type: ignore[operator]
    headings = ["model", "norm", "NBS", *map(heading, extra)]
    headings += ["seeds", "val. error %", "images/s", "other"]
    rows = []
    for row in cells.iter_rows(named=True):
        speed = row["images_per_s"]
        rows.append(
            [
                row["model"],
                row["norm"],
                nbs_words(row),
                *(NOTHING if row[key] is None else str(row[key]) for key in extra),
                str(row["seeds"])
                if row["seeds"] or not row["completed"]
                else NOTHING,  # no error was measured
                error_words(row, decimals),
                NOTHING if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
                missed_words(row),
            ]
        )
    return headings, rows


def nbs_words(row: Mapping[str, Any]) -> str:
    """The NBS of a cell and the span that reaches it, such as `64 (world)`."""
    return NOTHING if row["nbs"] is None else f"{row['nbs']} ({span_kind(row)})"


def error_words(row: Mapping[str, Any], decimals: int = 1) -> str:
    if row["mean"] is None:
        return NOTHING
    mean = f"{row['mean']:.{decimals}f}"
    return f"{mean} (n=1)" if row["high"] is None else f"{mean} ± {row['high'] - row['mean']:.{decimals}f}"


def missed_words(row: Mapping[str, Any]) -> str:
    """The runs that are no completed ones, by status: `1 diverged, 2 oom`."""
    return ", ".join(f"{row[status]} {status}" for status in MISSED if row[status])


def markdown(cells: pl.DataFrame) -> str:
    """A markdown table: a heading, a rule and one line per cell."""
    headings, rows = people(cells)
    rule = ["---:" if name in _RIGHT else "---" for name in headings]
    lines = [[_escaped(text) for text in row] for row in (headings, *rows)]
    lines.insert(1, rule)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + "".join(f"\n**{label}**\n" for label in labels(cells))


def labels(cells: pl.DataFrame) -> list[str]:
    """What has to be said beside these numbers because of their data."""
    return [label for label in catalog.DATA_LABELS.values() if label in cells["data"]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def show(cells: pl.DataFrame) -> None:
    """Print the table to the terminal. A file or a pipe gets as wide a table as it takes, 80 at least."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    headings, rows = people(cells)
    console = Console(markup=False, highlight=False)
    first = 0
    if cells["model"].n_unique() == 1:  # said once, above: terminals are narrow
        first = 1
        console.print(f"{rows[0][0]} on {', '.join(dict.fromkeys(cells['data']))}\n")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in headings[first:]:
        table.add_column(name, justify="right" if name in _RIGHT else "left", overflow="fold")
    for row in rows:
        table.add_row(*row[first:])
    if not console.is_terminal:
        needed = table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum
        console.width = max(80, needed)
    console.print(table)
    console.width = min(console.width, 100)
    for label in labels(cells):
        console.print(f"\n{label}")
    console.print(f"\n{LEGEND}")
