"""A benchmark's figures: each with an interval, a target and a verdict, shared by tables, files and `compare`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
BETTER = ("lower", "higher")


@dataclass(frozen=True)
class Figure:
    """A number that a benchmark is judged by, in `unit`: "x" for a ratio, else "s", "images/s", "MB", ...

    `low` and `high`: an interval of `value`; both None for a single measurement, whose noise is not known; equal to
    it for what has none, a count. `target`: at most that where `better` is "lower", at least where it is "higher".
    Raises ValueError for numbers that are not finite or not in order.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    target: float | None = None
    better: str = "lower"

    def __post_init__(self) -> None:
        numbers = [self.value, *(n for n in (self.low, self.high, self.target) if n is not None)]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError(f"figure {self.name!r}: {numbers} must be finite numbers")
        if (self.low is None) != (self.high is None) or not self.lowest <= self.value <= self.highest:
            raise ValueError(
                f"figure {self.name!r}: [{self.low}, {self.high}] must be an interval around {self.value}"
            )
        if self.better not in BETTER:
            raise ValueError(
                f"figure {self.name!r}: better={self.better!r} must be one of {', '.join(BETTER)}"
            )

    @classmethod
    def of(cls, name: str, values: Sequence[float], **more: Any) -> Figure:
        """The median of one value a round, with its distribution-free interval; none of a single round."""
        if len(values) == 1:
            return cls(name, values[0], **more)
        low, high, _ = median_interval(values)
        return cls(name, statistics.median(values), low, high, **more)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Figure:
        """Of a results file. Raises ValueError for a row that is none."""
        try:
            return cls(**{key: value for key, value in row.items() if key != "met"})
        except TypeError as error:
            raise ValueError(f"{row} is no figure: {error}") from None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}

    @property
    def lowest(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def highest(self) -> float:
        return self.value if self.high is None else self.high

    @property
    def met(self) -> str | None:
        """`open` where the target lies within the interval; None without a target."""
        if self.target is None:
            return None
        best, worst = (self.lowest, self.highest) if self.better == "lower" else (-self.highest, -self.lowest)
        target = self.target if self.better == "lower" else -self.target
        return "yes" if worst <= target else "no" if best > target else "open"

    @property
    def number(self) -> str:
        """`1.072 [1.034, 1.117]`, to three or four digits of the value; a count as it is."""
        if isinstance(self.value, int):
            return f"{self.value:,}"
        if self.low is None or self.high is None or self.low == self.high:
            return _digits(self.value, self.value)
        value, low, high = (_digits(n, self.value) for n in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    @property
    def aim(self) -> str:
        """`at most 1.07: open`; empty without a target."""
        if self.target is None:
            return ""
        bound = "at most" if self.better == "lower" else "at least"
        return f"{bound} {self.target:,g}: {self.met}"


def figure_lines(figures: Iterable[Figure]) -> list[str]:
    """Aligned: what, median [interval], unit, target and whether it is met."""
    rows = [(each.name, each.number, each.unit, each.aim) for each in figures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return [
        f"{name:{widths[0]}}  {number:{widths[1]}} {unit:{widths[2]}}  {aim}".rstrip()
        for name, number, unit, aim in rows
    ]


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Distribution-free interval of the median, and the confidence that it reaches.

    From the k-th smallest to the k-th largest value, k as large as the binomial law of how many of n values
    lie below the median allows: confidence 1 - 2 P(Bin(n, 1/2) < k). Five values or fewer do not reach 95%;
    then k = 1, their range.
    """
    ordered, n = sorted(values), len(values)
    k, below, tail = 1, 0.5**n, 0.5**n  # below = P(Bin(n, 1/2) < k)
    while 2 * (tail := tail + math.comb(n, k) * 0.5**n) <= 1 - confidence:
        k, below = k + 1, tail
    return ordered[k - 1], ordered[n - k], 1 - 2 * below


def _digits(number: float, like: float) -> str:
    """With as many decimals as show three or four digits of `like`, four at most."""
    whole = len(str(int(abs(like))))
    return f"{number:,.{max(0, 4 - whole) if abs(like) >= 0.1 else 4}f}"
