"""Learning curves: validation error over training, a chart for each NBS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bnbench.analysis.answer import CellView, Curve, Panel
from bnbench.report.numbers import cell_words, time_unit
from bnbench.report.style import Look

from .base import Chart, Entry, Trace, hover, layout, legend, log_axis, plain, rounded, titled

MOST_POINTS = 100  # of a curve
MOST_CHARTS = 8  # of a panel
HEIGHT = 260  # pixels
LEAST = 0.01  # percent


def learning_curves(
    panel: Panel, curves: Mapping[str, Curve], looks: Mapping[str, Look], key: str
) -> tuple[list[Chart], tuple[Entry, ...], tuple[str, ...]]:
    """A chart for each NBS of a panel, with the norms without NBS in each; their legend, and what is to be said of all.

    `curves`: by cell. All charts have one scale.
    """
    cells = [cell for cell in panel.cells if cell.key in curves]
    sizes = sorted({cell.nbs for cell in cells if cell.nbs is not None})
    notes = []
    if len(sizes) > MOST_CHARTS:
        notes.append(f"{MOST_CHARTS} of {len(sizes)} NBS are drawn, evenly chosen.")
        last = len(sizes) - 1
        sizes = [sizes[round(index * last / (MOST_CHARTS - 1))] for index in range(MOST_CHARTS)]
    longest = max((len(curves[cell.key].error) for cell in cells), default=0)
    if longest > MOST_POINTS:
        notes.append(f"Curves of more than {MOST_POINTS} evaluations are thinned to that, evenly.")
    drawing = _Drawing(panel, {cell.key: _thinned(curves[cell.key]) for cell in cells}, looks)
    shown: list[int | None] = [*sizes] or [None]
    drawn = [
        drawing.chart([cell for cell in cells if cell.nbs in (None, size)], size, f"{key}-{index}")
        for index, size in enumerate(shown)
        if cells
    ]
    return drawn, legend(panel, looks, cells), tuple(notes)


@dataclass(frozen=True)
class _Drawing:
    """What the charts of a panel share; `curves` by cell."""

    panel: Panel
    curves: Mapping[str, Curve]
    looks: Mapping[str, Look]

    def chart(self, cells: Sequence[CellView], size: int | None, key: str) -> Chart:
        data: list[Trace] = []
        axes: dict[str, list[Any]] = {}
        for cell in cells:
            curve, look = self.curves[cell.key], self.looks[cell.line]
            points = range(len(curve.error))
            inside = [at for at in points if None not in (curve.low[at], curve.high[at])]
            around = [*inside, *reversed(inside)]  # along the lower ends and back along the upper ones
            drawn = [(_band(cell, curve, look, inside), around)] if inside else []
            for trace, places in [*drawn, (_line(cell, curve, look), list(points))]:
                data.append(trace)
                for name, values in self._x(curve).items():
                    axes.setdefault(name, []).append([values[at] for at in places])
        for trace, values in zip(data, axes["epoch"], strict=True):
            trace["x"] = values
        where = "" if size is None else f"NBS {size}"
        ends = "; ".join(
            f"{cell_words(cell)} ends at {self.curves[cell.key].error[-1]:.1f} %" for cell in cells
        )
        return Chart(
            key=key,
            title=where or "Learning curves",
            summary=f"Validation error over training, {', '.join(filter(None, (self.panel.title, where)))}: {ends}.",
            data=data,
            layout=layout({"title": titled("epoch")}, {"title": titled("error (%)"), **self.scale}),
            height=HEIGHT,
            axes=axes,
        )

    def _x(self, curve: Curve) -> dict[str, list[float | None]]:
        length, unit = self.unit
        return {
            "epoch": [rounded(value) for value in curve.epoch],
            "step": list(curve.step),
            f"training time ({unit})": [rounded(value / length) for value in curve.seconds],
        }

    @cached_property
    def unit(self) -> tuple[float, str]:
        return time_unit(max(curve.seconds[-1] for curve in self.curves.values()))

    @cached_property
    def scale(self) -> dict[str, Any]:
        """Logarithmic, or the first errors hide what tells the last apart; by means: two seeds' intervals are wide."""
        values = [value for curve in self.curves.values() for value in curve.error if math.isfinite(value)]
        if not values or min(values) <= 0:
            return {"rangemode": "tozero"}
        ends = min(values) / 1.15, min(100.0, 1.08 * max(values))
        title = titled("error (%), log scale")
        return {**log_axis(*ends), "range": [rounded(math.log10(end)) for end in ends], "title": title}


def _line(cell: CellView, curve: Curve, look: Look) -> Trace:
    style: dict[str, Any] = {"color": look.colour, "width": 2}
    if cell.nbs is None:
        style["dash"] = look.dash
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(cell_words(cell)),
        "y": [rounded(value) for value in curve.error],
        "line": style,
        "meta": hover(cell),  # once for all points: a text for each would be most of a large page
        "hovertemplate": "%{meta}<br>%{y:.1f} % at %{x:.4~g}<extra></extra>",
        "legendgroup": cell.line,
    }


def _band(cell: CellView, curve: Curve, look: Look, inside: Sequence[int]) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "y": [_above_zero(curve.low[at]) for at in inside]
        + [_above_zero(curve.high[at]) for at in reversed(inside)],
        "fill": "toself",
        "fillcolor": look.band,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "legendgroup": cell.line,
        "showlegend": False,
    }


def _above_zero(value: float | None) -> float | None:
    """An interval may reach below 0, an error and a logarithm do not."""
    return None if value is None else rounded(max(value, LEAST))


def _thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, the first and the last among them."""
    points = len(curve.error)
    if points <= MOST_POINTS:
        return curve
    kept = [round(index * (points - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)]
    found: dict[str, Any] = {
        name: tuple(getattr(curve, name)[at] for at in kept)
        for name in ("step", "epoch", "seconds", "error", "low", "high")
    }
    return replace(curve, **found)
