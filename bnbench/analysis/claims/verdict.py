"""From paired numbers to a verdict: t interval, effect size, Holm's correction over a claim's comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnbench.analysis.statistics import LEVEL

SUPPORTED, AGAINST, OPEN = "supported", "not supported", "not distinguishable"
MISSING, CONTEXT = "not enough runs", "context"
VERDICTS = (SUPPORTED, AGAINST, OPEN, MISSING, CONTEXT)


@dataclass(frozen=True)
class Verdict:
    """One comparison of a claim, over `pairs` of runs that share a seed.

    `effect` is the mean of left - right, or the ratio left / right by geometric means where `ratio`; `low`
    and `high` its 95% t interval. `d_z` is Cohen's d for paired data: the mean difference over the
    differences' standard deviation (on the log scale for a ratio). `p` is two-sided, `p_holm` after Holm's
    correction. None where it does not exist.
    """

    claim: str
    left: str
    right: str
    setting: str  # in which cells, where a comparison is made in several
    measure: str
    unit: str
    better: str
    ratio: bool
    pairs: int
    left_mean: float | None = None
    right_mean: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    d_z: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: str = MISSING
    missing: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences with its interval, in the differences' own scale."""

    mean: float
    low: float
    high: float
    d_z: float | None
    p: float


def paired(differences: Sequence[float]) -> Paired | None:
    """None with fewer than two, or with two that are equal: nothing says how far they would spread.

    Where all are equal and not 0, as counted steps may be, a normal distribution says nothing either: p is then that
    of a sign-flip test, 2^(1 - n), and the interval that one value.
    """
    from scipy.special import stdtr, stdtrit

    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    if sd <= 1e-12 * max(1e-300, *map(abs, differences)):
        if mean == 0:
            return Paired(0.0, 0.0, 0.0, None, 1.0)
        return Paired(mean, mean, mean, None, 2.0 ** (1 - n)) if n > 2 else None
    error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Paired(mean, mean - half, mean + half, mean / sd, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def decide(mean: float, low: float, high: float, p_holm: float, better: str) -> str:
    """Both must hold for a direction: an interval on one side of zero, and an adjusted p below 0.05."""
    if p_holm >= 1 - LEVEL or low <= 0 <= high:
        return OPEN
    return SUPPORTED if (mean < 0) == (better == "lower") else AGAINST
