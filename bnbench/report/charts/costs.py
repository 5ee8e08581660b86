"""What a norm adds to a step: step time against that of the network without norms, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnbench.analysis.answer import CellView, NormCost
from bnbench.report.numbers import cell_words, number, share
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
    plain,
    rounded,
    rows_axis,
    rows_height,
    titled,
)

CONTROL = "#8A94A0"  # of a step without norms
# Of a step's parts: no norm's colour, so that nobody takes one for a norm.
PARTS = {
    "data_wait": "#B9C2CB",
    "forward": "#5B7FA6",
    "backward": "#33506F",
    "communication": "#C2813C",
    "optimizer": "#8C7AA9",
    "other": "#7D8790",
}


def step_times(
    title: str, costs: Sequence[NormCost], cells: Mapping[str, CellView], looks: Mapping[str, Look], key: str
) -> Chart:
    """A bar for each cell: the step without norms in grey, where it was measured, and in the norm's colour the rest."""
    drawn, notes = cut(costs, MOST_ROWS, "cells")
    names = [cell_words(cells[each.cell]) for each in drawn]
    base: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": "without norms",
        "x": [rounded(min(each.control_ms or 0.0, each.step_ms.mean)) for each in drawn],
        "y": list(range(len(drawn))),
        "marker": {"color": CONTROL},
        "text": [_words(each, cells[each.cell]) for each in drawn],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    data = [base]
    for row, each in enumerate(drawn):
        cell = cells[each.cell]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": plain(cell.line),
                "x": [rounded(max(0.0, each.step_ms.mean - (each.control_ms or 0.0)))],
                "y": [row],
                "marker": {"color": looks[cell.line].colour},
                "error_x": _interval(each),
                "text": [_words(each, cell)],
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
                "legendgroup": cell.line,
                "showlegend": False,
            }
        )
    controlled = any(each.control_ms is not None for each in costs)
    return Chart(
        key=key,
        title="Step time",
        summary=f"Step time of {len(costs)} cells, {title}: "
        + "; ".join(_said(each, cells[each.cell]) for each in drawn[:8])
        + ".",
        data=data,
        layout=_bars(names),
        height=rows_height(names),
        notes=(*(["Grey: a step of the same network without norms."] if controlled else []), *notes),
    )


def step_parts(
    title: str, costs: Sequence[NormCost], cells: Mapping[str, CellView], key: str
) -> Chart | None:
    """A step's time by its parts; None where no run measured them."""
    measured, notes = cut([each for each in costs if each.parts], MOST_ROWS, "cells")
    if not measured:
        return None
    names = [cell_words(cells[each.cell]) for each in measured]
    found = list(dict.fromkeys(name for each in measured for name in each.parts))
    order = [name for name in PARTS if name in found] + [name for name in found if name not in PARTS]
    data: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(_part(name)),
            "x": [rounded(each.parts.get(name)) for each in measured],
            "y": list(range(len(measured))),
            "marker": {"color": PARTS.get(name, PARTS["other"])},
            "text": [
                hover(cells[each.cell], f"{_part(name)}: {number(each.parts.get(name))} ms")
                for each in measured
            ],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for name in order
    ]
    return Chart(
        key=key,
        title="A step by its parts",
        summary=f"Step time by its parts ({', '.join(map(_part, order))}) of {len(measured)} cells, {title}.",
        data=data,
        layout=_bars(names),
        height=rows_height(names),
        legend=tuple(Entry(_part(name), PARTS.get(name, PARTS["other"])) for name in order),
        notes=notes,
    )


def _bars(names: Sequence[str]) -> dict[str, Any]:
    x = {"title": titled("step time (ms)"), "rangemode": "tozero"}
    return layout(x, rows_axis(names), barmode="stack", bargap=0.35)


def _interval(each: NormCost) -> Trace:
    low, high = each.step_ms.low, each.step_ms.high
    if low is None or high is None:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [rounded(high - each.step_ms.mean)],
        "arrayminus": [rounded(each.step_ms.mean - low)],
        "thickness": 1.3,
        "width": 4,
        "color": INK,
    }


def _part(name: str) -> str:
    return name.replace("_", " ")


def _said(each: NormCost, cell: CellView) -> str:
    added = "" if each.added_ms is None else f", {number(each.added_ms)} of it added by the norm"
    return f"{cell_words(cell)} {number(each.step_ms.mean)} ms{added}"


def _words(each: NormCost, cell: CellView) -> str:
    facts = [f"{number(each.step_ms.mean)} ms a step"]
    if each.control_ms is not None:
        facts.append(f"{number(each.control_ms)} ms without norms")
        facts.append(f"{number(each.added_ms)} ms added: {share(each.share)} of the step")
    if each.collectives is not None:
        facts.append(f"{number(each.collectives)} collectives a step")
    return hover(cell, *facts)
