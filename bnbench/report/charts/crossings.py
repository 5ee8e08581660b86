"""Where two lines cross: a bar for each crossover's interval, with a diamond where they meet."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from bnbench.analysis.answer import Crossover
from bnbench.analysis.sentences import nbs_number

from .base import INK, Trace, plain, rounded

NAME = 20  # characters of a line's name


def crossings(crossovers: Sequence[Crossover], ends: tuple[float, float]) -> tuple[list[Trace], list[Trace]]:
    """A bar for each interval with a diamond where the lines meet, and its words; open to a side: an arrow there."""
    traces, words = [], []
    middle = math.sqrt(ends[0] * ends[1])
    for row, crossing in enumerate(crossovers):
        low, high = crossing.low or ends[0] * 1.04, crossing.high or ends[1] / 1.04
        names = [textwrap.shorten(name, NAME, placeholder="…") for name in (crossing.left, crossing.right)]
        text = plain(f"{' = '.join(names)} at {crossing_words(crossing)}")
        symbols = ["line-ns", "diamond", "line-ns"]
        if crossing.low is None:
            symbols[0] = "triangle-left"
        if crossing.high is None:
            symbols[2] = "triangle-right"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [rounded(low), rounded(crossing.nbs), rounded(high)],
                "y": [row] * 3,
                "yaxis": "y3",
                "line": {"color": INK, "width": 1.5},
                "marker": {"symbol": symbols, "size": 9, "color": INK, "line": {"color": INK, "width": 1.5}},
                "text": [text] * 3,
                "hovertemplate": "%{text}<extra></extra>",
                "showlegend": False,
                "cliponaxis": False,
            }
        )
        left = crossing.nbs <= middle
        words.append(
            {
                "x": math.log10(max(low, ends[0]) if left else min(high, ends[1])),
                "xref": "x",
                "xanchor": "left" if left else "right",
                "y": row,
                "yref": "y3",
                "yshift": 12,
                "text": text,
                "showarrow": False,
                "font": {"size": 12},
            }
        )
    return traces, words


def crossing_words(crossing: Crossover) -> str:
    """`6.3 [4.4, 9.9]`; an end beyond the NBS at which the two were compared as `< 2` or `> 64`."""
    low, high = crossing_ends(crossing)
    return f"{nbs_number(crossing.nbs)} [{low}, {high}]"


def crossing_ends(crossing: Crossover) -> tuple[str, str]:
    low = f"< {crossing.first}" if crossing.low is None else nbs_number(crossing.low)
    high = f"> {crossing.last}" if crossing.high is None else nbs_number(crossing.high)
    return low, high
