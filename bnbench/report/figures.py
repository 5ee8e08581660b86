"""The figure: validation error against NBS, one line per norm, with intervals."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnbench.analysis.answer import CellView, Panel
from bnbench.analysis.statistics import MISSED
from bnbench.report.style import BAND, Look, looks
from bnbench.report.table import missed_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {
    "svg.hashsalt": "bnbench",  # the same records give the same bytes
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
PANEL = (4.6, 3.3)  # inches
MOST_COLUMNS = 3
TITLE = 54  # characters of a line that fit over a panel
LOST = "no error to show"


def prepare() -> None:
    """Import what drawing takes a second to import."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401


def error_against_nbs(panels: Sequence[Panel]) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG: a line for each norm, in as many panels as there are.

    A norm without NBS is one horizontal line with its interval as a band; where a line meets the baseline's is marked.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Over all panels: a norm looks the same in each.
    styles = looks(cell.line for panel in panels for cell in panel.cells)
    columns = min(len(panels), MOST_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change a report
        matplotlib.rcParams.update(STYLE)
        height = PANEL[1] + 0.15 * max(len(panel.title) // TITLE for panel in panels)
        figure = Figure(figsize=(PANEL[0] * columns + 0.4, height * rows + 0.6))
        FigureCanvasAgg(figure)
        same_scale = len({panel.title.partition(",")[0] for panel in panels}) == 1  # model and data
        grid = figure.subplots(rows, columns, squeeze=False, sharey=same_scale)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.remove()
                continue
            _draw(axes, panels[index], styles)
            axes.set_title(textwrap.fill(panels[index].title, TITLE), loc="left", pad=9)
            if index % columns == 0:
                axes.set_ylabel("validation error (%)")
        for axes in figure.axes:
            _limit(axes)
        figure.suptitle(_title(panels), x=0.01, ha="left", fontsize=10)
        _settle(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=200, pil_kwargs={"compress_level": 3})
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _limit(axes: Axes) -> None:
    """An interval may reach beyond 0 and 100%; an error does not. After all is drawn: axes may share their scale."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))


def _settle(figure: Figure) -> None:
    """Lay out the axes and place the legends once: each file would do so anew."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ConstrainedLayoutEngine().execute(figure)
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            legend.set_loc(tuple(axes.transAxes.inverted().transform(legend.get_window_extent().p0)))


def _title(panels: Sequence[Panel]) -> str:
    seeds = sorted({cell.error.n for panel in panels for cell in panel.cells if cell.error is not None})
    if not seeds:
        return "Validation error against normalization batch size\nno error to show"
    if seeds == [1]:
        return "Validation error against normalization batch size\none seed: no interval"
    count = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return f"Validation error against normalization batch size\nmean and 95% t interval over {count} seeds"


def _draw(axes: Axes, panel: Panel, styles: Mapping[str, Look]) -> None:
    sizes = sorted({cell.nbs for cell in panel.cells if cell.nbs is not None})
    axes.set_xscale("log", base=2)
    axes.set_xlim((sizes[0] / 1.5, sizes[-1] * 1.5) if sizes else (1, 2))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(
        "normalization batch size (images that share statistics)" if sizes else "no norm with an NBS"
    )
    axes.margins(y=0.12)
    by_line: dict[str, list[CellView]] = {}
    for cell in panel.cells:
        by_line.setdefault(cell.line, []).append(cell)
    side_by_side = [line for line, own in by_line.items() if own[0].nbs is not None]
    labels = []
    for line, own in by_line.items():
        look = styles[line]
        label = _label(line, own)
        labels.append(label)
        if own[0].nbs is None:
            _draw_level(axes, own[0], look.colour, look.dashes, label)
        else:
            # A little apart, or the bars of two norms at one NBS would hide each other.
            shift = 2 ** (0.12 * (side_by_side.index(line) - (len(side_by_side) - 1) / 2))
            _draw_line(axes, own, look.colour, look.marker, label, shift)
    _draw_crossovers(axes, panel, styles)
    if any(cell.error is None and cell.nbs is not None for cell in panel.cells):
        axes.plot([], [], "x", color="#555555", markersize=7, markeredgewidth=1.8, label=LOST)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [label for label in (*labels, LOST) if label in named]  # as in the table
    axes.legend([named[label] for label in order], order, loc="best")


def _draw_level(axes: Axes, cell: CellView, colour: str, dashes: str, label: str) -> None:
    """A norm without NBS: the same at every x."""
    if cell.error is None:
        axes.plot([], [], dashes, color=colour, label=label)  # its runs are counted in the legend
        return
    if cell.error.low is not None and cell.error.high is not None:
        axes.axhspan(cell.error.low, cell.error.high, color=colour, alpha=BAND, linewidth=0, zorder=1)
    axes.axhline(cell.error.mean, color=colour, linestyle=dashes, linewidth=1.4, label=label, zorder=2)


def _draw_line(
    axes: Axes, cells: Sequence[CellView], colour: str, marker: str, label: str, shift: float
) -> None:
    """A norm with NBS: means joined, 95% t intervals, and each seed faintly."""
    cells = sorted(cells, key=lambda cell: cell.nbs or 0)
    x = [(cell.nbs or 0) * shift for cell in cells]
    left = [
        at * 2**-0.09 for at, cell in zip(x, cells, strict=True) for _ in cell.errors
    ]  # not under the bar
    seeds = [error for cell in cells for error in cell.errors]
    # Whole markers at 0 and at 100%, of means too; intervals stay within the axes.
    axes.plot(
        left, seeds, "o", color=colour, alpha=0.45, markersize=3, markeredgewidth=0, zorder=3, clip_on=False
    )
    found = [cell.error for cell in cells]
    means, *_ = axes.errorbar(
        x,
        # A cell without a result breaks the line; with one seed there is no interval, and no bar.
        [math.nan if error is None else error.mean for error in found],
        yerr=[
            math.nan if error is None or error.high is None else error.high - error.mean for error in found
        ],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        elinewidth=1.1,
        capsize=3,
        label=label,
        zorder=4,
    )
    means.set_clip_on(False)
    lost = [at for at, error in zip(x, found, strict=True) if error is None]
    if lost:
        top = axes.get_xaxis_transform()  # x in data, y from 0 to 1 over the panel
        cross: Any = {"color": colour, "markersize": 7, "markeredgewidth": 1.8}
        axes.plot(lost, [1.0] * len(lost), "x", transform=top, clip_on=False, zorder=5, **cross)


def _draw_crossovers(axes: Axes, panel: Panel, styles: Mapping[str, Look]) -> None:
    """On the axis: where a line meets the baseline's, with the interval of that place."""
    floor = axes.get_xaxis_transform()
    for rank, crossover in enumerate(panel.crossovers):
        colour = styles[crossover.left].colour
        height = 0.025 + 0.03 * rank
        low, high = axes.get_xlim()
        ends = [crossover.low or low, crossover.high or high]
        axes.plot(ends, [height] * 2, color=colour, linewidth=3, alpha=0.35, transform=floor, zorder=2)
        axes.plot(
            [crossover.nbs], [height], "|", color=colour, markersize=9, markeredgewidth=2, transform=floor
        )


def _label(line: str, cells: Sequence[CellView]) -> str:
    words = missed_words({status: sum(cell.statuses.get(status, 0) for cell in cells) for status in MISSED})
    words = ", ".join(filter(None, ["no NBS" if cells[0].nbs is None else "", words]))
    return f"{line} ({words})" if words else line
