"""Where two lines of a panel meet: the NBS at which neither norm has the lower error."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from bnbench.analysis.answer import CellView, Crossover, Panel
from bnbench.analysis.contrasts import Errors, baseline_of, lines
from bnbench.analysis.paired import FEWEST, Paired, paired

STEPS_PER_OCTAVE = 64


def crossovers(panel: Panel, errors: Errors, baseline: str) -> list[Crossover]:
    """Each meeting of a line's mean with the baseline's.

    The paired differences of each seed are joined by straight lines over log2 NBS, between the NBS that both have (a
    line without NBS has all); a crossover is where their mean is zero. Its interval is that of the NBS around it at
    which the 95% t interval of the difference holds zero, as Fieller's for a ratio: with an end that is not reached
    within what was measured, it is open there; open at both, it could lie anywhere, and is none.
    """
    own, base = lines(panel.cells), baseline_of(panel, baseline)
    found: list[Crossover] = []
    for line, cells in own.items():
        if base is not None and line != base:
            for stretch in _differences(cells, own[base], errors):
                found += _meetings(panel.key, line, base, stretch)
    return found


def _differences(
    left: Sequence[CellView], right: Sequence[CellView], errors: Errors
) -> list[dict[float, list[float]]]:
    """By log2 NBS, the differences of the seeds that all places have, in stretches of neighbouring places.

    A place where runs diverged ends a stretch, since the rest of them are a choice; and so does one with too few.
    """
    facing = {
        math.log2(other.nbs or one.nbs or 1): (one, other)
        for one in left
        for other in right
        if (one.nbs is None) != (other.nbs is None) or (one.nbs is not None and one.nbs == other.nbs)
    }
    paired_by_seed: dict[float, dict[int, float]] = {}
    for place, (one, other) in facing.items():
        ours, theirs = errors.get(one.key, {}), errors.get(other.key, {})
        both = {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}
        diverged = any(cell.statuses.get("diverged") for cell in (one, other))
        if not diverged and len(both) >= FEWEST:
            paired_by_seed[place] = both
    seeds = sorted(set.intersection(*map(set, paired_by_seed.values()))) if paired_by_seed else []
    stretches: list[dict[float, list[float]]] = [{}]
    for place in sorted(facing):
        if place in paired_by_seed:
            stretches[-1][place] = [paired_by_seed[place][seed] for seed in seeds]
        else:
            stretches.append({})
    return stretches


def _meetings(panel: str, left: str, right: str, differences: dict[float, list[float]]) -> list[Crossover]:
    places = list(differences)
    if len(places) < 2 or len(differences[places[0]]) < FEWEST:
        return []

    def at(x: float) -> Paired | None:
        """The paired difference between two measured places."""
        # Within the places: rounding may put an end just outside.
        i = min(max(bisect_right(places, x) - 1, 0), len(places) - 2)
        share = (x - places[i]) / (places[i + 1] - places[i])
        both = zip(differences[places[i]], differences[places[i + 1]], strict=True)
        return paired([a + share * (b - a) for a, b in both])

    means = [math.fsum(differences[place]) / len(differences[place]) for place in places]
    apart = [(place, mean) for place, mean in zip(places, means, strict=True) if mean]
    first, last = round(2 ** places[0]), round(2 ** places[-1])
    found = []
    for (x, a), (y, b) in pairwise(apart):
        if a * b < 0:
            equal = [place for place, mean in zip(places, means, strict=True) if x < place < y]
            middle = sum(equal) / len(equal) if equal else x + (y - x) * a / (a - b)
            low, high = _end(at, middle, places[0]), _end(at, middle, places[-1])
            if low is not None or high is not None:  # else it could lie anywhere
                found.append(Crossover(panel, left, right, 2**middle, low, high, first, last))
    return found


def _end(at: Callable[[float], Paired | None], middle: float, last: float) -> float | None:
    """The NBS, from a crossover on, before the interval leaves zero; None where it holds zero to the last."""
    steps = max(1, math.ceil(abs(last - middle) * STEPS_PER_OCTAVE))
    for step in range(1, steps + 1):
        x = middle + (last - middle) * step / steps
        found = at(x)
        if found is not None and not found.low <= 0 <= found.high:
            return float(2 ** (middle + (last - middle) * (step - 0.5) / steps))
    return None
