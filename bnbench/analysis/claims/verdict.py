"""The verdict of one comparison of a claim."""

from __future__ import annotations

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


def decide(mean: float, low: float, high: float, p_holm: float, better: str) -> str:
    """Both must hold for a direction: an interval on one side of zero, and an adjusted p below 0.05."""
    if p_holm >= 1 - LEVEL or low <= 0 <= high:
        return OPEN
    return SUPPORTED if (mean < 0) == (better == "lower") else AGAINST
