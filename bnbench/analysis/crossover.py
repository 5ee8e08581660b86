"""Where two lines of a panel meet: the NBS at which neither norm has the lower error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from bnbench.analysis.answer import Contrast, Crossover, Panel


def crossovers(panel: Panel) -> list[Crossover]:
    """Each meeting of a line's mean with the baseline's, by the panel's comparisons.

    The mean differences at neighbouring NBS are joined by straight lines over log2 NBS; the meeting is where they are
    zero. It is held between the nearest NBS below and above at which the comparison has a verdict: what is between
    was not told apart, whatever the shape of the curves. Without a verdict on a side, before the next meeting or the
    end of what was compared, it is open there; open on both, it could lie anywhere, and is none. A place that cannot
    be compared, as where runs diverged, is not joined over.
    """
    line = {cell.key: cell.line for cell in panel.cells}
    found: list[Crossover] = []
    for (left, right), both in groupby(panel.contrasts, key=lambda each: (line[each.left], line[each.right])):
        own = sorted((each for each in both if each.nbs is not None), key=lambda each: each.nbs or 0)
        for compared, stretch in groupby(own, key=lambda each: each.difference is not None):
            if compared and left != right:
                found += _meetings(panel.key, left, right, list(stretch))
    return found


def _meetings(panel: str, left: str, right: str, stretch: Sequence[Contrast]) -> list[Crossover]:
    apart = [i for i, each in enumerate(stretch) if _mean(each)]
    found = []
    for i, j in pairwise(apart):
        a, b = _mean(stretch[i]), _mean(stretch[j])
        if a * b > 0:
            continue
        x, y = (math.log2(stretch[place].nbs or 1) for place in (i, j))
        equal = [math.log2(each.nbs or 1) for each in stretch[i + 1 : j]]
        middle = sum(equal) / len(equal) if equal else x + (y - x) * a / (a - b)
        low, high = _end(stretch[i::-1], a), _end(stretch[j:], b)
        if low is not None or high is not None:
            first, last = stretch[0].nbs or 1, stretch[-1].nbs or 1
            found.append(Crossover(panel, left, right, 2**middle, low, high, first, last))
    return found


def _end(outwards: Sequence[Contrast], mean: float) -> float | None:
    """The NBS of the first verdict on one side of a meeting, whose means have the sign of `mean`."""
    for each in outwards:
        if _mean(each) * mean < 0:
            return None  # another meeting lies before
        if each.outcome in ("better", "worse"):
            return float(each.nbs or 1)
    return None


def _mean(contrast: Contrast) -> float:
    assert contrast.difference is not None
    return contrast.difference.mean
