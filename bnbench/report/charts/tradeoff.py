"""Error, step time and memory at once: what is given up for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bnbench.analysis.answer import CellView, Panel
from bnbench.report.numbers import memory, number, percents
from bnbench.report.style import Look

from .base import (
    INK,
    Chart,
    Trace,
    by_line,
    hover,
    layout,
    legend,
    log_axis,
    plain,
    rounded,
    titled,
    whiskers,
)

SMALLEST, LARGEST = 8.0, 22.0  # pixels across, of the marker for the least and most memory
WIDE = 8.0  # times between the quickest and slowest step from which on the axis is logarithmic
OFF_FRONT = 0.4  # opacity


def measured(panel: Panel) -> list[CellView]:
    """The cells that have both an error and a step time."""
    return [cell for cell in panel.cells if cell.error is not None and cell.step_ms]


def pareto(panel: Panel, looks: Mapping[str, Look], key: str) -> Chart | None:
    """Error against step time; a marker's area is its peak memory, and those on the front are outlined.

    None where no cell has both an error and a step time.
    """
    cells = measured(panel)
    if not cells:
        return None
    times = [cell.step_ms or 0.0 for cell in cells]
    known = [cell.peak_bytes for cell in cells if cell.peak_bytes]
    log = max(times) > WIDE * min(times)
    x: dict[str, Any] = {"title": titled("step time (ms)")}
    if log:
        x |= log_axis(min(times) / 2, max(times) * 2)
    y = {"title": titled("validation error (%)")}
    front = [cell for cell in cells if cell.on_front]
    notes = [
        f"The area of a marker is its peak memory: {memory(min(known))} to {memory(max(known))}."
        if known
        else "No run of these recorded its peak memory: markers are of one size."
    ]
    lost = len(panel.cells) - len(cells)
    if lost:
        notes.append(f"{lost} of {len(panel.cells)} cells are not drawn: no completed run with a step time.")
    return Chart(
        key=key,
        title="Error against step time",
        summary=f"Validation error against step time, {panel.title}: {len(cells)} cells, of which on the front: "
        + (", ".join(_name(cell) for cell in front) or "none")
        + ".",
        data=_traces(cells, looks, max(known, default=1.0)),
        layout=layout(x, y),
        height=400,
        legend=legend(panel, looks, cells, joined=False),
        notes=tuple(notes),
    )


def _traces(cells: Sequence[CellView], looks: Mapping[str, Look], most: float) -> list[Trace]:
    traces: list[Trace] = []
    for line, own in by_line(Panel("", "", tuple(cells))).items():
        look = looks[line]
        means = [rounded(cell.error.mean) if cell.error else None for cell in own]
        ends = [(cell.error.low, cell.error.high) if cell.error else (None, None) for cell in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": plain(line),
                "x": [rounded(cell.step_ms) for cell in own],
                "y": means,
                "error_y": whiskers(means, ends) | {"color": look.colour, "thickness": 1, "width": 0},
                "marker": {
                    "color": look.colour,
                    "symbol": look.symbol,
                    "size": [_across(cell, most) for cell in own],
                    "opacity": [1.0 if cell.on_front else OFF_FRONT for cell in own],
                    "line": {"width": [2 if cell.on_front else 0 for cell in own], "color": INK},
                },
                "text": ["" if cell.nbs is None else str(cell.nbs) for cell in own],
                "textposition": "middle right",
                "textfont": {"size": 11},
                "hovertext": [_words(cell) for cell in own],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "legendgroup": line,
            }
        )
    return traces


def _across(cell: CellView, most: float) -> float:
    """By area; where memory is not known, the smallest."""
    part = math.sqrt(min(1.0, (cell.peak_bytes or 0.0) / most))
    return round(max(SMALLEST, LARGEST * part), 1)


def _words(cell: CellView) -> str:
    facts = [percents(cell.error)] if cell.error else []
    facts.append(f"{number(cell.step_ms)} ms a step")
    if cell.peak_bytes:
        facts.append(f"{memory(cell.peak_bytes)} at its peak")
    facts.append(
        "on the front"
        if cell.on_front
        else "another cell is at least as good in all three, and better in one"
    )
    return hover(cell, *facts)


def _name(cell: CellView) -> str:
    return cell.line if cell.nbs is None else f"{cell.line} at NBS {cell.nbs}"
