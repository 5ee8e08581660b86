"""The figure: a step's time and SyncBN's overhead against the number of GPUs. No torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bnbench.report.figures import STYLE
from bnbench.report.style import MARKERS, PALETTE

from .measured import CONFIDENCE
from .prediction import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import Result

Line = tuple[str, str]  # span, algorithm


def draw(result: Result) -> tuple[bytes, bytes]:
    """As PNG and as SVG. Bands are the intervals of what was measured; open marks are measured steps."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change it
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9.4, 4.1), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        lines = _lines(result)
        for axes in (left, right):
            _prepare(axes, result)
        for n, ((span, algorithm), label) in enumerate(lines.items()):
            least = {"node": result.cluster.node, "group": result.cluster.group}.get(span, 1)
            # In a smaller world they are the world's own line.
            rows = [r for r in result.rows if (r.span, r.algorithm) == (span, algorithm) and r.gpus >= least]
            look: Any = {
                "color": PALETTE[n],
                "marker": tuple(MARKERS)[n],
                "linestyle": "--" if algorithm == "tree" else "-",
                "markersize": 4,
                "linewidth": 1.4,
            }
            _line(left, rows, "seconds", 1000, look, label)
            if span != "device":
                _line(right, rows, "overhead", 100, look, label)
        _measured(left, result)
        left.set_title("a step", loc="left")
        left.set_ylabel("ms")
        right.set_title("SyncBN's overhead over BN on each device", loc="left")
        right.set_ylabel("%")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=200)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _lines(result: Result) -> dict[Line, str]:
    cluster = result.cluster
    return {
        ("device", "ring"): "BN on each device",
        ("node", "ring"): f"SyncBN over a node of {cluster.node}",
        ("group", "ring"): f"SyncBN over a group of {cluster.group}",
        ("world", "ring"): "SyncBN over all, ring",
        ("world", "tree"): "SyncBN over all, tree",
    }


def _prepare(axes: Axes, result: Result) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    sizes = sorted({row.gpus for row in result.rows})
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    every = 1 + len(sizes) // 8
    axes.set_xticks(sizes[::every], [f"{size:,}" for size in sizes[::every]])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.minorticks_off()
    axes.set_xlabel(result.unit)


def _line(axes: Axes, rows: list[Row], what: str, scale: float, look: Any, label: str) -> None:
    """A line with its band; a log scale has no place for an overhead of 0."""
    shown = [(row.gpus, getattr(row, what)) for row in rows]
    shown = [(gpus, spread) for gpus, spread in shown if spread.value > 0]
    x = [gpus for gpus, _ in shown]
    axes.plot(x, [scale * spread.value for _, spread in shown], label=label, **look)
    low, high = ([scale * getattr(spread, end) for _, spread in shown] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0)


def _measured(axes: Axes, result: Result) -> None:
    for norm, label, marker in (
        ("bn", "measured: BN on each", "o"),
        ("sync", "measured: SyncBN over all", "D"),
    ):
        found = [check for check in result.checks if check.what == norm]
        if found:
            x, y = [check.ranks for check in found], [1000 * check.measured.value for check in found]
            axes.plot(x, y, marker, color="#000000", markerfacecolor="none", markersize=8, label=label)


def _title(result: Result) -> str:
    config = result.config
    first = (
        f"{config.model.label}, {config.per_device_batch} images a device: predicted by the alpha-beta model"
    )
    if result.measured is None:
        return f"{first}\nlinks and the step by itself as given"
    where = f"measured on {result.found['ranks']} ranks ({result.found['device_name']}, {result.found['backend']})"
    return f"{first}\n{where}; bands: {100 * CONFIDENCE:.0f}% of draws of the rounds"
