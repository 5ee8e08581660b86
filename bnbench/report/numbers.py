"""Numbers as people read them on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bnbench.analysis.answer import CellView, Interval
from bnbench.analysis.statistics import MISSED
from bnbench.report.table import NOTHING, missed_words

LONGEST = 300  # characters of one value or message of a record
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def decimals(intervals: Iterable[Interval | None]) -> int:
    """One number of decimals down a column of percents: enough for its narrowest interval."""
    halves = [(each.high - each.mean) for each in intervals if each is not None and each.high is not None]
    return 2 if halves and min(halves) < 0.1 else 1


def plus_minus(value: Interval | None, places: int = 1) -> str:
    """`12.4 ± 0.5`, or `12.4 (n=1)` without an interval."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return f"{value.mean:.{places}f} (n={value.n})"
    return f"{value.mean:.{places}f} ± {(value.high - value.low) / 2:.{places}f}"


def difference(value: Interval | None, places: int = 1) -> str:
    """`+1.2 [0.3, 2.1]`: signed, with both ends, which a bootstrap's interval has unequally far off."""
    if value is None:
        return NOTHING
    middle = f"{_no_minus_zero(value.mean, places):+.{places}f}"
    if value.low is None or value.high is None:
        return middle
    ends = [f"{_no_minus_zero(each, places):+.{places}f}" for each in (value.low, value.high)]
    return f"{middle} [{ends[0]}, {ends[1]}]"


def percents(value: Interval) -> str:
    """`12.4 [11.9, 12.9] %`."""
    ends = "" if value.low is None or value.high is None else f" [{value.low:.1f}, {value.high:.1f}]"
    return f"{value.mean:.1f}{ends} %"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; whole thousands with a comma."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def measured(value: float | None) -> str:
    """As `number`, with its zeros: a column of measurements shows how exact they are."""
    if value is None or not math.isfinite(value) or abs(value) >= 1000:
        return number(value)
    return f"{value:#.3g}".rstrip(".")


def probability(p: float | None) -> str:
    if p is None or math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share(value: float | None) -> str:
    """0 to 1 as `12 %`."""
    return NOTHING if value is None else f"{100 * value:.0f} %"


def ratio(value: Interval | None) -> str:
    """`1.30 [1.21, 1.40]`; a dash without one."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def memory(value: float | None) -> str:
    if value is None:
        return NOTHING
    size, unit = next((pair for pair in _BYTES if value >= pair[0]), _BYTES[-1])
    return f"{value / size:.3g} {unit}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time is best said, with its length in seconds."""
    return next((pair for pair in _TIMES if seconds >= 2 * pair[0]), _TIMES[-1])


def duration(value: Interval | None) -> str:
    """Seconds as `42.1 s [40.0, 44.2]`, in the unit that fits the mean."""
    if value is None:
        return NOTHING
    size, unit = time_unit(value.mean)
    middle = f"{measured(value.mean / size)} {unit}"
    if value.low is None or value.high is None:
        return middle
    return f"{middle} [{measured(max(value.low, 0) / size)}, {measured(value.high / size)}]"


def missed(cell: CellView) -> str:
    """A cell's runs that are no completed ones, by status: `1 diverged, 2 oom`."""
    return missed_words({status: cell.statuses.get(status, 0) for status in MISSED})


def cell_words(cell: CellView) -> str:
    """A cell within its panel: `bn at NBS 4`, `gn`."""
    return cell.line if cell.nbs is None else f"{cell.line} at NBS {cell.nbs}"


def nbs_words(cell: CellView) -> str:
    """`64 (world)`; as `table.nbs_words`, of a row of the table of cells."""
    if cell.nbs is None:
        return NOTHING
    return f"{cell.nbs} ({cell.span})" if cell.span else str(cell.nbs)


def short(text: str) -> str:
    """A record's words in one line, cut where there are many."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def count(quantity: int, noun: str) -> str:
    return f"{quantity:,} {noun}{'' if quantity == 1 else 's'}"


def _no_minus_zero(value: float, places: int) -> float:
    return round(value, places) + 0.0
