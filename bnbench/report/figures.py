"""The figure: validation error against NBS, one line per norm, with intervals."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnbench.analysis.statistics import MISSED, factors
from bnbench.report.table import heading, missed_words

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

# Okabe & Ito's colour-blind-safe palette without its yellow, which is too light on white; black last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("--", "-.", ":")
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
LOST = "no run completed"

Row = dict[str, Any]
Line = tuple[str, ...]  # a norm, then the settings of it that vary


def error_against_nbs(runs: pl.DataFrame, cells: pl.DataFrame) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG, from `Collected.runs` and `statistics.cells`.

    One panel for each model, data and other setting in which cells differ; a norm's own settings make
    lines. A norm without NBS is one horizontal line with its interval as a band.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(cells)
    lines = list(dict.fromkeys(_line(row, cells) for rows in panels.values() for row in rows))
    points = _errors(runs)
    columns = min(len(panels), MOST_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change a report
        matplotlib.rcParams.update(STYLE)
        height = PANEL[1] + 0.15 * max(len(title) // TITLE for title in panels)
        figure = Figure(figsize=(PANEL[0] * columns + 0.4, height * rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        same_scale = cells.select("model", "data").n_unique() == 1
        grid = figure.subplots(rows, columns, squeeze=False, sharey=same_scale)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.remove()
                continue
            title = list(panels)[index]
            _draw(axes, panels[title], lines, points, cells)
            axes.set_title(textwrap.fill(title, TITLE), loc="left", pad=9)
            if index % columns == 0:
                axes.set_ylabel("validation error (%)")
        figure.suptitle(_title(cells), x=0.01, ha="left", fontsize=10)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=200)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _title(cells: pl.DataFrame) -> str:
    seeds = sorted({n for n in cells["seeds"] if n})
    if not seeds:
        return "Validation error against normalization batch size\nno run completed"
    if seeds == [1]:
        return "Validation error against normalization batch size\none seed: no interval"
    count = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return (
        "Validation error against normalization batch size\n"
        f"mean and 95% t interval over {count} seeds; faint points: single seeds"
    )


def _panels(cells: pl.DataFrame) -> dict[str, list[Row]]:
    """The rows of each panel, by its title."""
    outer = [key for key in factors(cells) if key != "data" and not key.startswith("norm.")]
    panels: dict[str, list[Row]] = {}
    for row in cells.iter_rows(named=True):
        settings = [f"{heading(key)} {row[key]}" for key in outer if row[key] is not None]
        panels.setdefault(", ".join([f"{row['model']} on {row['data']}", *settings]), []).append(row)
    return panels


def _line(row: Row, cells: pl.DataFrame) -> Line:
    own = [key for key in factors(cells) if key.startswith("norm.") and row[key] is not None]
    return (row["norm"], *(f"{key.removeprefix('norm.')} {row[key]}" for key in own))


def _errors(runs: pl.DataFrame) -> dict[str, list[float]]:
    """The errors of the completed runs of each cell."""
    errors: dict[str, list[float]] = {}
    for cell, status, error in runs.select("cell", "status", "val_error").iter_rows():
        if status == "completed" and error is not None:
            errors.setdefault(cell, []).append(error)
    return errors


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    lines: Sequence[Line],
    points: dict[str, list[float]],
    cells: pl.DataFrame,
) -> None:
    sizes = sorted({row["nbs"] for row in rows if row["nbs"] is not None})
    axes.set_xscale("log", base=2)
    axes.set_xlim((sizes[0] / 1.5, sizes[-1] * 1.5) if sizes else (1, 2))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(
        "normalization batch size (images that share statistics)" if sizes else "no norm with an NBS"
    )
    axes.margins(y=0.12)
    by_line: dict[Line, list[Row]] = {}
    for row in rows:
        by_line.setdefault(_line(row, cells), []).append(row)
    side_by_side = [line for line, own in by_line.items() if own[0]["nbs"] is not None]
    labels = []
    for line, own in by_line.items():
        index = lines.index(line)  # over all panels: a norm looks the same in each
        colour = PALETTE[index % len(PALETTE)]
        label = _label(line, own)
        labels.append(label)
        if own[0]["nbs"] is None:
            _draw_level(axes, own[0], colour, DASHES[index % len(DASHES)], label)
        else:
            # A little apart, or the bars of two norms at one NBS would hide each other.
            shift = 2 ** (0.12 * (side_by_side.index(line) - (len(side_by_side) - 1) / 2))
            _draw_line(axes, own, points, colour, MARKERS[index % len(MARKERS)], label, shift)
    if axes.get_ylim()[0] < 0:
        axes.set_ylim(bottom=0)  # an interval may reach below; an error does not
    if any(row["mean"] is None and row["nbs"] is not None for row in rows):
        axes.plot([], [], "x", color="#555555", markersize=7, markeredgewidth=1.8, label=LOST)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [label for label in (*labels, LOST) if label in named]  # as in the table
    axes.legend([named[label] for label in order], order, loc="best")


def _draw_level(axes: Axes, row: Row, colour: str, dashes: str, label: str) -> None:
    """A norm without NBS: the same at every x."""
    if row["mean"] is None:
        axes.plot([], [], dashes, color=colour, label=label)  # its runs are counted in the legend
        return
    if row["low"] is not None:
        axes.axhspan(row["low"], row["high"], color=colour, alpha=0.16, linewidth=0, zorder=1)
    axes.axhline(row["mean"], color=colour, linestyle=dashes, linewidth=1.4, label=label, zorder=2)


def _draw_line(
    axes: Axes,
    rows: Sequence[Row],
    points: dict[str, list[float]],
    colour: str,
    marker: str,
    label: str,
    shift: float,
) -> None:
    """A norm with NBS: means joined, 95% t intervals, and each seed faintly."""
    rows = sorted(rows, key=lambda row: row["nbs"])
    x = [row["nbs"] * shift for row in rows]
    for at, row in zip(x, rows, strict=True):
        errors = points.get(row["cell"], [])
        left = [at * 2**-0.09] * len(errors)  # beside the interval, which would hide them
        axes.plot(left, errors, "o", color=colour, alpha=0.45, markersize=3, markeredgewidth=0, zorder=3)
    axes.errorbar(
        x,
        # A cell without a result breaks the line; with one seed there is no interval, and no bar.
        [math.nan if row["mean"] is None else row["mean"] for row in rows],
        yerr=[math.nan if row["high"] is None else row["high"] - row["mean"] for row in rows],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        elinewidth=1.1,
        capsize=3,
        label=label,
        zorder=4,
    )
    lost = [at for at, row in zip(x, rows, strict=True) if row["mean"] is None]
    if lost:
        top = axes.get_xaxis_transform()  # x in data, y from 0 to 1 over the panel
        cross: Any = {"color": colour, "markersize": 7, "markeredgewidth": 1.8}
        axes.plot(lost, [1.0] * len(lost), "x", transform=top, clip_on=False, zorder=5, **cross)


def _label(line: Line, rows: Sequence[Row]) -> str:
    words = missed_words({status: sum(row[status] for row in rows) for status in MISSED})
    words = ", ".join(filter(None, ["no NBS" if rows[0]["nbs"] is None else "", words]))
    name = " ".join([line[0], ", ".join(line[1:])]).strip()
    return f"{name} ({words})" if words else name
