"""Paired runs: the interval of their differences, tests, their correction, and how many pairs would tell more.

A pair is two runs with one seed: the same first weights and the same order of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnbench.analysis.statistics import LEVEL

FEWEST = 2  # pairs
BOOTSTRAP_FROM = 10  # pairs
RESAMPLES = 9_999
POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences with its interval, in the differences' own scale.

    `d_z` is Cohen's d for paired data: the mean over the differences' standard deviation. `p` is two-sided.
    """

    mean: float
    low: float
    high: float
    d_z: float | None
    p: float
    sd: float = 0.0


def paired(differences: Sequence[float]) -> Paired | None:
    """By Student's t. None with fewer than two, or with two that are equal: nothing says how far they would spread.

    Where all are equal and not 0, as counted steps may be, a normal distribution says nothing either: p is then that
    of a sign-flip test, 2^(1 - n), and the interval that one value.
    """
    from scipy.special import stdtr, stdtrit  # without scipy.stats' second of imports

    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    rounding = 1e-12 * max(1.0, *map(abs, differences))  # of errors in percent, at their own scale
    if sd <= rounding:
        if abs(mean) <= rounding:
            return Paired(0.0, 0.0, 0.0, None, 1.0)
        return Paired(mean, mean, mean, None, 2.0 ** (1 - n)) if n > 2 else None
    error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Paired(mean, mean - half, mean + half, mean / sd, p, sd)


def untold(seeds: int, where: str = "") -> str:
    """Why `paired` has no answer."""
    if seeds < FEWEST:
        return f"{seeds} seed(s) in common{where}, and {FEWEST} are the fewest"
    return f"the differences of {seeds} seeds are equal: nothing tells how far others would spread"


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """The 95% interval, bias-corrected and accelerated, of the mean difference. The same numbers give the same.

    A second look beside Student's, and not the interval of a verdict: of 10 normal differences it covers some 90%.
    """
    import numpy as np
    from scipy import stats

    sample = np.asarray(differences, dtype=float)
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    found = stats.bootstrap(
        (sample,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, vectorized=True, rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def improvement(left: Sequence[float], right: Sequence[float]) -> float:
    """The probability that a run of the left has the lower number; ties count half (Mann-Whitney's U over n m)."""
    from scipy.stats import rankdata

    ranks = rankdata([*right, *left])
    n, m = len(right), len(left)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def seeds_needed(sd: float, difference: float) -> int | None:
    """Pairs with which a two-sided t test at 5% finds this true difference with a power of 80%.

    `sd` of the paired differences. At least 2; None above MOST_SEEDS.
    """
    if sd == 0:
        return 2
    if _power(MOST_SEEDS, sd, difference) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # power rises with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, sd, difference) >= POWER else (middle, high)
    return high


def _power(n: int, sd: float, difference: float) -> float:
    from scipy.special import nctdtr, stdtrit

    limit = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    shift = abs(difference) / sd * math.sqrt(n)
    beyond = 1 - float(nctdtr(n - 1, shift, limit))
    return 1.0 if math.isnan(beyond) else beyond  # so far out that the series ends


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
