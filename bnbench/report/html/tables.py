"""Tables of the page: text to read, values to sort by, links. Plain data; `table.html.j2` lays it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from urllib.parse import quote, urlsplit

from bnbench.analysis.answer import Interval
from bnbench.report.charts import Entry
from bnbench.report.numbers import measured, number
from bnbench.report.table import NOTHING

Found = TypeVar("Found")

MOST = 300  # rows; a browser sorts and filters as many at once
UNKNOWN = ("", NOTHING)
FILTERED = 8  # rows from which on a table has a box to filter it by


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Value:
    """One entry: `sort` where the text does not sort by itself; `href` makes it a link; `swatch` is put before it.

    `tone`: good, bad or quiet.
    """

    text: str
    sort: float | None = None
    href: str | None = None
    swatch: Entry | None = None
    tone: str = ""

    @property
    def order(self) -> float | None:
        """What it sorts by as a number; nan would sort nowhere."""
        return self.sort if self.sort is not None and math.isfinite(self.sort) else None


@dataclass(frozen=True)
class Table:
    """The first entry of a row is its heading. `cut` says how many rows are not here, and where they are."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    cut: str = ""
    rest: str | None = None  # link to all rows

    @property
    def filtered(self) -> bool:
        return len(self.rows) >= FILTERED

    @cached_property
    def by_number(self) -> tuple[bool, ...]:
        """By column: whether any entry sorts as a number. Then each says what it sorts by, as DataTables wants it."""
        return tuple(any(row[at].order is not None for row in self.rows) for at in range(len(self.columns)))


def table(
    key: str,
    caption: str,
    columns: Sequence[Column],
    found: Sequence[Found],
    row: Callable[[Found], Sequence[Value]],
    rest: str | None = None,
    total: int | None = None,
) -> Table:
    """A table with a row of each that was found, up to `MOST`. A column in which nothing is known is left out.

    `rest`: the link to a file with all rows. `total`: how many there are, where `found` was chosen among them.
    """
    shown = [tuple(row(each)) for each in found[:MOST]]
    total = total or len(found)
    kept = [
        at for at in range(len(columns)) if at == 0 or any(each[at].text not in UNKNOWN for each in shown)
    ]
    cut = f"{len(shown):,} of {total:,} rows are shown" if total > len(shown) else ""
    return Table(
        key=key,
        caption=caption,
        columns=tuple(columns[at] for at in kept),
        rows=tuple(tuple(each[at] for at in kept) for each in shown),
        cut=cut,
        rest=rest if cut else None,
    )


def measurement(value: float | None) -> Value:
    return Value(measured(value), value)


def quantity(value: float | None) -> Value:
    return Value(number(value), value)


def whole(value: int | None) -> Value:
    return Value(NOTHING if value is None else f"{value:,}", value)


def percent(value: float | None) -> Value:
    return Value(NOTHING if value is None else f"{value:.1f}", value)


def mean(words: str, value: Interval | None) -> Value:
    """Words for an interval, which sort by its mean."""
    return Value(words, None if value is None else value.mean)


def local(path: str) -> str:
    """A relative path as a link: nothing in it is read as a scheme, a host or a query."""
    quoted = quote(path, safe="/")
    return f".{quoted}" if quoted.startswith("//") else quoted


def web(address: str | None) -> str | None:
    """An address to link to: http or https, else none."""
    if not address:
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.netloc else None
