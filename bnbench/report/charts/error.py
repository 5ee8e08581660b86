"""The main figure: validation error against NBS, a line for each norm, and where lines cross."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bnbench.analysis.answer import CellView, Interval, Panel
from bnbench.report.numbers import count, percents
from bnbench.report.style import Look

from .base import (
    FAINT,
    Chart,
    Trace,
    by_line,
    hover,
    layout,
    legend,
    marker,
    plain,
    rounded,
    titled,
    whiskers,
    wrapped,
)
from .crossings import crossing_words, crossings

HEIGHT = 400  # pixels, of the error's part
AROUND = 56  # of them above and below the axes
STRIP = 36  # of each crossover below them
MOST_CROSSOVERS = 4
APART = 0.12  # octaves between two norms at one NBS, whose intervals would hide each other
AXIS = "normalization batch size (NBS)"
ERROR = "validation error (%)"


def error_against_nbs(panel: Panel, looks: Mapping[str, Look], key: str) -> Chart:
    """Means joined, 95% intervals, each seed faintly; a norm without NBS is one level with its interval as a band.

    A cell without a completed run is a cross at the top. Below, a bar for each crossover's interval.
    """
    sizes = sorted({cell.nbs for cell in panel.cells if cell.nbs is not None})
    if not sizes:
        return _by_norm(panel, looks, key)
    ends = (sizes[0] / 1.5, sizes[-1] * 1.5)
    lines = by_line(panel)
    joined = [line for line, cells in lines.items() if cells[-1].nbs is not None]
    step = min(APART, 0.7 / max(len(joined), 1))
    data: list[Trace] = []
    for line, cells in lines.items():
        points = [cell for cell in cells if cell.nbs is not None]
        for cell in cells[: len(cells) - len(points)]:
            data += _level(cell, looks[line], [ends[0] / 4, *sizes, ends[1] * 4])
        if points:
            shift = 2.0 ** (step * (joined.index(line) - (len(joined) - 1) / 2))
            x = [(cell.nbs or 0) * shift for cell in points]
            data += _line(points, looks[line], x, [at * 2**-0.09 for at in x])
    crossovers = panel.crossovers[:MOST_CROSSOVERS]
    below = STRIP * len(crossovers)
    share = below / (HEIGHT - AROUND + below)
    axis: dict[str, Any] = {
        "type": "log",
        "range": [math.log10(end) for end in ends],
        "tickvals": sizes,
        "ticktext": [str(size) for size in sizes],
        "title": titled(AXIS),
    }
    y = {"title": titled(ERROR), "range": _range(panel.cells), "domain": [share, 1]}
    drawn = layout(axis | ({"anchor": "y3"} if crossovers else {}), y, **_over(share))
    if crossovers:
        traces, words = crossings(crossovers, ends)
        data += traces
        drawn |= {"annotations": words, "yaxis3": _hidden([len(crossovers) - 0.6, -0.8], [0, share - 0.02])}
    notes: tuple[str, ...] = ()
    if len(panel.crossovers) > MOST_CROSSOVERS:
        notes = (f"{MOST_CROSSOVERS} of {len(panel.crossovers)} crossovers are marked; the table has all.",)
    return Chart(
        key=key,
        title="Validation error against normalization batch size",
        summary=_summary(panel, sizes),
        data=data,
        layout=drawn,
        height=HEIGHT + below,
        legend=legend(panel, looks),
        notes=notes,
    )


def _line(
    cells: Sequence[CellView],
    look: Look,
    x: Sequence[float],
    beside: Sequence[float],
    mode: str = "lines+markers",
) -> list[Trace]:
    """One line's cells at `x`, and their seeds `beside` the intervals, which would hide them."""
    line = cells[0].line
    means = [None if cell.error is None else rounded(cell.error.mean) for cell in cells]
    seeds = [
        (at, error, cell)
        for at, cell in zip(beside, cells, strict=True)
        for error in (cell.errors if len(cell.errors) > 1 else ())
    ]
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [rounded(at) for at, _, _ in seeds],
            "y": [rounded(error) for _, error, _ in seeds],
            "marker": {"color": look.colour, "size": 5},
            "opacity": FAINT,
            "text": [hover(cell, f"one seed: {error:.1f} %") for _, error, cell in seeds],
            "hovertemplate": "%{text}<extra></extra>",
            "legendgroup": line,
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": mode,
            "name": plain(line),
            "x": [rounded(at) for at in x],
            "y": means,
            "connectgaps": False,  # a cell without a result breaks the line
            "error_y": whiskers(means, [_ends(cell.error) for cell in cells]) | {"color": look.colour},
            "line": {"color": look.colour, "width": 2},
            "marker": marker(look),
            "text": [hover(cell, *_facts(cell)) for cell in cells],
            "hovertemplate": "%{text}<extra></extra>",
            "legendgroup": line,
        },
    ]
    lost = [(at, cell) for at, cell in zip(x, cells, strict=True) if cell.error is None]
    if lost:
        traces.append(_crosses([cell for _, cell in lost], [at for at, _ in lost], look))
    return traces


def _level(cell: CellView, look: Look, x: Sequence[float]) -> list[Trace]:
    """A norm without NBS: the same at every x."""
    if cell.error is None:
        return [_crosses([cell], [math.sqrt(x[0] * x[-1])], look)]
    mean = rounded(cell.error.mean)
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(cell.line),
            "x": list(x),
            "y": [mean] * len(x),
            "line": {"color": look.colour, "width": 2, "dash": look.dash},
            "text": [hover(cell, *_facts(cell), "the same at every NBS")] * len(x),
            "hovertemplate": "%{text}<extra></extra>",
            "legendgroup": cell.line,
        }
    ]
    low, high = _ends(cell.error)
    if low is not None and high is not None:
        band = {
            "type": "scatter",
            "mode": "lines",
            "x": [x[0], x[-1], x[-1], x[0]],
            "y": [rounded(low), rounded(low), rounded(high), rounded(high)],
            "fill": "toself",
            "fillcolor": look.band,
            "line": {"width": 0},
            "hoverinfo": "skip",
            "legendgroup": cell.line,
            "showlegend": False,
        }
        traces.insert(0, band)
    return traces


def _crosses(cells: Sequence[CellView], x: Sequence[float], look: Look) -> Trace:
    """Cells without a completed run, at the top."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(at) for at in x],
        "y": [0.97] * len(x),
        "yaxis": "y2",
        "marker": {
            "symbol": "x-thin",
            "size": 10,
            "color": look.colour,
            "line": {"width": 2.5, "color": look.colour},
        },
        "text": [hover(cell, "no error to show") for cell in cells],
        "hovertemplate": "%{text}<extra></extra>",
        "legendgroup": cells[0].line,
        "showlegend": False,
    }


def _by_norm(panel: Panel, looks: Mapping[str, Look], key: str) -> Chart:
    """Where no norm has an NBS: a column for each."""
    lines = by_line(panel)
    data: list[Trace] = []
    for index, (line, cells) in enumerate(lines.items()):
        data += _line(cells, looks[line], [index] * len(cells), [index - 0.04] * len(cells), "markers")
    x = {
        "tickvals": list(range(len(lines))),
        "ticktext": [wrapped(line) for line in lines],
        "range": [-0.6, len(lines) - 0.4],
        "showgrid": False,
        "title": titled("no norm here has an NBS"),
    }
    y = {"title": titled(ERROR), "range": _range(panel.cells)}
    return Chart(
        key=key,
        title="Validation error by norm",
        summary=_summary(panel, []),
        data=data,
        layout=layout(x, y, **_over(0)),
        height=HEIGHT,
        legend=legend(panel, looks, joined=False),
    )


def _over(share: float) -> dict[str, Any]:
    """An axis from 0 to 1 over the errors, for what has none."""
    return {"yaxis2": _hidden([0, 1], [share, 1]) | {"overlaying": "y"}}


def _hidden(span: list[float], domain: list[float]) -> dict[str, Any]:
    return {"range": span, "domain": domain, "visible": False, "fixedrange": True, "showgrid": False}


def _ends(error: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if error is None else (error.low, error.high)


def _facts(cell: CellView) -> tuple[str, ...]:
    if cell.error is None:
        return ("no error to show",)
    return percents(cell.error), count(cell.error.n, "seed")


def _range(cells: Sequence[CellView]) -> list[float | None]:
    """From the lowest to the highest of what is drawn, with room; an interval may reach below 0, an error does not."""
    values = [error for cell in cells for error in (cell.errors if len(cell.errors) > 1 else ())]
    for cell in cells:
        if cell.error is not None:
            values += [each for each in (cell.error.mean, *_ends(cell.error)) if each is not None]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return [0, 100]
    low, high = max(0.0, min(values)), min(100.0, max(values))
    room = 0.08 * (high - low) or 1.0
    return [rounded(max(0.0, low - room)), rounded(high + 1.5 * room)]


def _summary(panel: Panel, sizes: Sequence[int]) -> str:
    said = []
    for line, cells in by_line(panel).items():
        known = [cell for cell in cells if cell.error is not None]
        if not known:
            said.append(f"{line}: no error to show")
        elif len(known) == 1:
            at = "" if known[0].nbs is None else f" at NBS {known[0].nbs}"
            said.append(f"{line} {_mean(known[0])}{at}")
        else:
            first, last = known[0], known[-1]
            said.append(f"{line} from {_mean(first)} at NBS {first.nbs} to {_mean(last)} at NBS {last.nbs}")
    for each in panel.crossovers if sizes else ():
        said.append(f"{each.left} and {each.right} meet at NBS {crossing_words(each)}")
    return f"Validation error against NBS, {panel.title}. {'; '.join(said)}."


def _mean(cell: CellView) -> str:
    return f"{cell.error.mean:.1f} %" if cell.error is not None else "none"
