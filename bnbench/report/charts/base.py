"""What every chart of the page has in common: plain dicts in Plotly's schema, and words for who does not see them.

Colours of axes, grids and text are not here: the page's script sets them by its theme. Text from records is escaped,
since Plotly reads some HTML in it.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnbench.analysis.answer import CellView, Panel
from bnbench.analysis.statistics import MISSED
from bnbench.report.numbers import missed
from bnbench.report.style import Look
from bnbench.report.table import missed_words

Trace = dict[str, Any]

MOST_ROWS = 40  # of a chart with a row for each cell
ROW = 24  # pixels
WIDEST = 24  # characters of a row's name in one line
FEWEST_TICKS = 4  # of a logarithmic axis
FAINT = 0.45  # opacity of single seeds
INK = "#000000"  # the script draws it in the page's own ink


@dataclass(frozen=True)
class Entry:
    """One line of a legend, with what it is drawn by: a marker's symbol, dashes, both or, with neither, an area.

    `line`: what it hides and shows; None where it is a key only.
    """

    label: str
    colour: str
    symbol: str | None = None
    dash: str | None = None
    line: str | None = None


@dataclass(frozen=True)
class Chart:
    """A Plotly figure. A trace's `legendgroup` is the line that it belongs to, which a reader may hide.

    `summary` tells in a sentence or two what is drawn; `height` is in pixels; `notes` say what is not drawn.
    `axes`: other x values to choose from, by their axis's title: one list for each trace.
    """

    key: str
    title: str
    summary: str
    data: list[Trace]
    layout: dict[str, Any]
    height: int = 400
    legend: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()
    axes: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """What the page's script draws, as JSON can hold it."""
        found: dict[str, Any] = {"data": self.data, "layout": self.layout}
        if self.axes:
            found["axes"] = self.axes
        return found


def plain(text: str) -> str:
    """Text as itself, where Plotly would read `<b>` or `<a>`."""
    return html.escape(text, quote=False)


def wrapped(text: str) -> str:
    """A row's name, in lines that leave a phone room for the row."""
    lines = textwrap.wrap(text, WIDEST, max_lines=3, placeholder=" …") or [text]
    return "<br>".join(map(plain, lines))


def rounded(value: float | None) -> float | None:
    """Five significant digits: more would show in the size of the page only. None for what JSON has not."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Axes with room for their names, and nothing that the page has itself (title, legend)."""
    return {
        "xaxis": {"automargin": True, "zeroline": False, **x},
        "yaxis": {"automargin": True, "zeroline": False, **y},
        "margin": {"l": 52, "r": 16, "t": 12, "b": 44},
        "hovermode": "closest",
        "showlegend": False,
        "font": {"size": 13},
        **more,
    }


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with plain numbers from low to high at its ticks, where Plotly has 2 and 5 of any decade.

    The coarsest steps that give enough of them; where low and high are close, even ones.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [each * 10.0**decade for decade in decades for each in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= FEWEST_TICKS:
            break
    else:
        apart = (high - low) / FEWEST_TICKS
        scale = 10.0 ** math.floor(math.log10(apart))
        step = scale * max(each for each in (1, 2, 5) if each * scale <= apart)
        found = [at * step for at in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return {
        "type": "log",
        "tickvals": [rounded(tick) for tick in found],
        "ticktext": [f"{tick:,.4g}" if tick < 1000 else f"{tick:,.0f}" for tick in found],
    }


def titled(text: str, standoff: int = 10) -> dict[str, Any]:
    return {"text": text, "standoff": standoff}


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """A y axis with a row for each name, the first on top, at y = 0, 1, ..."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [wrapped(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "ticks": "",
    }


def rows_height(names: Sequence[str]) -> int:
    lines = max((min(3, math.ceil(len(name) / WIDEST)) for name in names), default=1)
    return 72 + len(names) * max(ROW, 16 * lines + 4)


def whiskers(means: Sequence[float | None], ends: Sequence[tuple[float | None, float | None]]) -> Trace:
    """Error bars from means and the ends of their intervals; none where there is no interval."""
    up, down = [], []
    for mean, (low, high) in zip(means, ends, strict=True):
        known = mean is not None and low is not None and high is not None
        up.append(rounded(high - mean) if known else None)  # type: ignore[operator]
        down.append(rounded(mean - low) if known else None)  # type: ignore[operator]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": 1.3,
        "width": 4,
    }


def marker(look: Look, size: int = 8, **more: Any) -> Trace:
    return {"color": look.colour, "symbol": look.symbol, "size": size, **more}


def by_line(panel: Panel) -> dict[str, list[CellView]]:
    """The cells of each line, by NBS."""
    found: dict[str, list[CellView]] = {}
    for cell in panel.cells:
        found.setdefault(cell.line, []).append(cell)
    return {line: sorted(cells, key=lambda cell: cell.nbs or 0) for line, cells in found.items()}


def legend(
    panel: Panel, looks: Mapping[str, Look], cells: Sequence[CellView] | None = None, joined: bool = True
) -> tuple[Entry, ...]:
    """An entry for each line of a panel, or of some of its cells, with what did not complete.

    `joined`: as lines over NBS, with levels dashed; else as the markers that a chart without lines has.
    """
    entries = []
    kept = {cell.line for cell in (panel.cells if cells is None else cells)}
    for line, own in by_line(panel).items():
        if line not in kept:
            continue
        look, level = looks[line], all(cell.nbs is None for cell in own)
        lost = missed_words({status: sum(cell.statuses.get(status, 0) for cell in own) for status in MISSED})
        words = ", ".join(filter(None, ["no NBS" if level else "", lost]))
        symbol = None if level and joined else look.symbol
        dash = (look.dash if level else "solid") if joined else None
        entries.append(Entry(f"{line} ({words})" if words else line, look.colour, symbol, dash, line))
    return tuple(entries)


def hover(cell: CellView, *facts: str) -> str:
    """What is said of a cell under the pointer, a fact a line."""
    where = cell.line if cell.nbs is None else f"{cell.line} at NBS {cell.nbs}"
    if cell.span and cell.nbs is not None:
        where += f" ({cell.span})"
    words = [f"<b>{plain(where)}</b>", *map(plain, facts)]
    if lost := missed(cell):
        words.append(plain(lost))
    return "<br>".join(words)


def cut(rows: Sequence[Any], most: int, what: str) -> tuple[list[Any], tuple[str, ...]]:
    """The first rows, and a note where there are more."""
    if len(rows) <= most:
        return list(rows), ()
    return list(rows[:most]), (f"{most} of {len(rows):,} {what} are drawn; the table has the others too.",)
