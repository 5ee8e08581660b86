"""Error of the final networks under running, precise and batch statistics: a row for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnbench.analysis.answer import CellView
from bnbench.report.context import HealthRow
from bnbench.report.numbers import cell_words
from bnbench.report.style import Look

from .base import (
    INK,
    MOST_ROWS,
    Chart,
    Entry,
    Trace,
    cut,
    hover,
    layout,
    rounded,
    rows_axis,
    rows_height,
    titled,
)

KINDS = {"running": "circle", "precise": "diamond-open", "batch": "line-ns-open"}


def error_by_statistics(
    title: str,
    health: Sequence[HealthRow],
    cells: Mapping[str, CellView],
    looks: Mapping[str, Look],
    key: str,
) -> Chart | None:
    """None where no cell has an error under more than one kind of statistics."""
    told = [each for each in health if len(_errors(each)) > 1]
    if not told:
        return None
    drawn, notes = cut(told, MOST_ROWS, "cells")
    names = [cell_words(cells[each.cell]) for each in drawn]
    data: list[Trace] = []
    for row, each in enumerate(drawn):
        cell = cells[each.cell]
        look, errors = looks[cell.line], _errors(each)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [rounded(value) for value in errors.values()],
                "y": [row] * len(errors),
                "line": {"color": look.colour, "width": 1},
                "marker": {
                    "color": look.colour,
                    "size": [15 if kind == "batch" else 10 for kind in errors],
                    "symbol": [KINDS[kind] for kind in errors],
                    "line": {"width": 2, "color": look.colour},
                },
                "text": [hover(cell, f"{kind} statistics: {value:.1f} %") for kind, value in errors.items()],
                "hovertemplate": "%{text}<extra></extra>",
                "legendgroup": cell.line,
                "showlegend": False,
            }
        )
    for kind, symbol in KINDS.items():  # for the legend of a saved image
        data.append(
            {"type": "scatter", "mode": "markers", "name": f"{kind} statistics", "x": [None], "y": [None]}
        )
        data[-1]["marker"] = {"color": INK, "symbol": symbol, "size": 10}
    return Chart(
        key=key,
        title="Error by the statistics that evaluation uses",
        summary=f"Validation error of the final networks under running, precise and batch statistics, {title}: "
        f"{len(told)} cells.",
        data=data,
        layout=layout({"title": titled("validation error (%)")}, rows_axis(names)),
        height=rows_height(names),
        legend=tuple(Entry(f"{kind} statistics", INK, symbol=symbol) for kind, symbol in KINDS.items()),
        notes=notes,
    )


def _errors(each: HealthRow) -> dict[str, float]:
    found = {"running": each.running, "precise": each.precise, "batch": each.batch}
    return {kind: value for kind, value in found.items() if value is not None}
