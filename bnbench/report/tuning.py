"""Learning rates on the page: the best of each cell's grid, and the largest that was stable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bnbench.analysis.lr_range import TABLE, StableRate, stable_rates
from bnbench.analysis.panels import heading
from bnbench.analysis.tuning import TunedCell, telling, tuned, unequal
from bnbench.records import Record
from bnbench.report.table import NOTHING

if TYPE_CHECKING:
    import polars as pl


def section(runs: pl.DataFrame, records: Iterable[Record]) -> str:
    """Markdown: each cell at its best learning rate, and its largest stable one, where runs tell."""
    return "\n".join(filter(None, (_tuned(runs), _stable(stable_rates(records)))))


def _tuned(runs: pl.DataFrame) -> str:
    cells = tuned(runs)
    if not cells:
        return ""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.settings))
    heads = ["model", "norm", "NBS", *map(heading, keys), "best LR", "val. error %", "LRs tried", "edge"]
    said = (
        "The best learning rate of each cell, by the mean validation error over its seeds: chosen on the images "
        "that it is validated on, unless data.val_images holds some out. A rate at which a seed has no number "
        "cannot be chosen. An optimum on an edge of its grid asks for a wider one.\n"
    )
    if unequal(cells):
        said += "\n**The cells did not try the same learning rates: their best are not to be compared.**\n"
    return f"## Tuned learning rates\n\n{said}\n{_table(heads, [_row(cell, keys) for cell in cells])}"


def _row(cell: TunedCell, keys: Sequence[str]) -> list[str]:
    choice = cell.choice
    return [
        cell.model,
        cell.norm,
        NOTHING if cell.nbs is None else str(cell.nbs),
        *(cell.settings.get(key, NOTHING) for key in keys),
        NOTHING if choice.mean is None else f"{choice.rate:g}",
        NOTHING if choice.mean is None else f"{choice.mean:.1f}",
        f"{len(choice.tried)}: " + ", ".join(f"{rate:g}" for rate in choice.tried),
        choice.edge or "",
    ]


def _stable(cells: Sequence[StableRate]) -> str:
    if not cells:
        return ""
    keys = telling(cell.flat for cell in cells)
    heads = ["model", "norm", "NBS", *map(heading, keys), "seeds", "largest stable LR", "notes"]
    rows = []
    for cell in cells:
        notes = [f"{cell.none} without a stable rate"] if cell.none else []
        notes += (
            [f"{cell.at_end} stable to the end of the range: raise schedule.lr_end"] if cell.at_end else []
        )
        interval = "" if cell.low is None else f" [{cell.low:.3g}, {cell.high:.3g}]"
        rows.append(
            [
                str(cell.flat.get("model.name")),
                str(cell.flat.get("norm.name")),
                str(cell.flat.get("nbs") or NOTHING),
                *(str(cell.flat.get(key, NOTHING)) for key in keys),
                str(cell.seeds),
                NOTHING if cell.mean is None else f"{cell.mean:.3g}{interval}",
                "; ".join(notes),
            ]
        )
    said = (
        "From runs whose learning rate rises geometrically (schedule=range): the geometric mean over seeds with "
        "its 95% t interval on a log scale.\n"
    )
    return f"## {TABLE}\n\n{said}\n{_table(heads, rows)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
