"""Time until a target error: a row for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnbench.analysis.answer import CellView, TimeToTarget
from bnbench.report.numbers import cell_words, duration, number, time_unit
from bnbench.report.style import Look

from .base import (
    MOST_ROWS,
    Chart,
    Trace,
    cut,
    hover,
    layout,
    log_axis,
    marker,
    plain,
    rounded,
    rows_axis,
    rows_height,
    titled,
)

WIDE = 8.0  # times between the quickest and the slowest from which on the axis is logarithmic


def time_to_target(
    title: str,
    times: Sequence[TimeToTarget],
    cells: Mapping[str, CellView],
    looks: Mapping[str, Look],
    key: str,
) -> Chart:
    """Seconds of training until the target, those of one panel and one target; quickest first.

    A cell of which a seed never came there has a cross at the right edge, and how many did beside its name.
    """
    ordered = sorted(times, key=lambda each: each.seconds.mean if each.seconds else float("inf"))
    drawn, notes = cut(ordered, MOST_ROWS, "cells")
    names = [cell_words(cells[each.cell]) + _some(each) for each in drawn]
    means = [each.seconds.mean for each in drawn if each.seconds]
    size, unit = time_unit(means[len(means) // 2]) if means else (1.0, "s")
    data = []
    for row, each in enumerate(drawn):
        cell, look = cells[each.cell], looks[cells[each.cell].line]
        trace: Trace = {
            "type": "scatter",
            "mode": "markers",
            "name": plain(cell.line),
            "y": [row],
            "text": [hover(cell, *_facts(each))],
            "hovertemplate": "%{text}<extra></extra>",
            "legendgroup": cell.line,
            "showlegend": False,  # in a saved image too: the rows are named
        }
        if each.seconds is None:
            edge = {"symbol": "x-thin", "size": 10, "line": {"width": 2.5, "color": look.colour}}
            trace |= {
                "x": [0.985],
                "xaxis": "x2",
                "cliponaxis": False,
                "marker": {"color": look.colour} | edge,
            }
        else:
            seconds = each.seconds
            known = seconds.low is not None and seconds.high is not None
            trace |= {
                "x": [rounded(seconds.mean / size)],
                "marker": marker(look, 10),
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [rounded((seconds.high - seconds.mean) / size) if known else None],  # type: ignore[operator]
                    "arrayminus": [rounded((seconds.mean - seconds.low) / size) if known else None],  # type: ignore[operator]
                    "color": look.colour,
                    "thickness": 1.3,
                    "width": 4,
                },
            }
        data.append(trace)
    x: Trace = {"title": titled(f"training time ({unit})")}
    wide = means and max(means) > WIDE * min(means)
    x |= log_axis(min(means) / size / 4, max(means) / size * 4) if wide else {"rangemode": "tozero"}
    target = f"{number(times[0].target)} %"
    never = sum(each.seconds is None for each in times)
    quickest = (
        f"; quickest: {cell_words(cells[drawn[0].cell])}, {duration(drawn[0].seconds)}" if means else ""
    )
    edge_axis = {"range": [0, 1], "overlaying": "x", "visible": False, "fixedrange": True}
    return Chart(
        key=key,
        title=f"Training time until {target} validation error",
        summary=f"Training time until {target} validation error, {title}: {len(times)} cells{quickest}"
        + (f"; {never} of them with a seed that never came there." if never else "."),
        data=data,
        layout=layout(x, rows_axis(names), xaxis2=edge_axis),
        height=rows_height(names),
        notes=notes,
    )


def _some(each: TimeToTarget) -> str:
    """` (2 of 3)`, where some seeds came there and others did not."""
    return f" ({each.reached} of {each.runs})" if each.seconds is None and each.reached else ""


def _facts(each: TimeToTarget) -> tuple[str, ...]:
    reached = f"{each.reached} of {each.runs} seeds came to {number(each.target)} %"
    if each.seconds is None:
        return (reached,)
    hours = () if each.device_hours is None else (f"{number(each.device_hours)} device-hours",)
    return (duration(each.seconds), *hours, reached)
