"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from bnbench.analysis.answer import Interval
from bnbench.report import numbers
from bnbench.report.table import NOTHING


def test_an_interval_is_half_its_width_and_a_differences_ends_keep_their_signs() -> None:
    assert numbers.plus_minus(Interval(12.44, 11.9, 12.98, 3)) == "12.4 ± 0.5"
    assert numbers.plus_minus(Interval(12.44, None, None, 1)) == "12.4 (n=1)"
    assert numbers.difference(Interval(1.24, -0.04, 2.5, 3)) == "+1.2 [+0.0, +2.5]"
    assert numbers.difference(Interval(-0.004, None, None, 1), 2) == "+0.00"
    assert numbers.plus_minus(None) == numbers.difference(None) == numbers.duration(None) == NOTHING


def test_a_column_has_decimals_for_its_narrowest_interval() -> None:
    wide, narrow, none = Interval(1, 0, 2, 3), Interval(1, 0.95, 1.05, 3), Interval(1, None, None, 1)
    assert numbers.decimals([wide, none, None]) == 1
    assert numbers.decimals([wide, narrow]) == 2
    assert numbers.decimals([]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0096, "0.00960"), (24.0, "24.0"), (100.0, "100"), (123.4, "123"), (4087.3, "4,087"), (0.0, "0.00")],
)
def test_a_measurement_keeps_three_digits(value: float, words: str) -> None:
    assert numbers.measured(value) == words


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_no_number_is_nothing(bad: float | None) -> None:
    assert numbers.measured(bad) == numbers.number(bad) == NOTHING


def test_times_and_sizes_have_the_unit_that_fits() -> None:
    assert numbers.duration(Interval(42.13, 40.0, 44.2, 3)) == "42.1 s [40.0, 44.2]"
    assert numbers.duration(Interval(600.0, None, None, 1)) == "10.0 min"
    assert numbers.duration(Interval(7200.0, -3600.0, 18000.0, 2)) == "2.00 h [0.00, 5.00]"
    assert [numbers.memory(size) for size in (0.0, 999.0, 4680.0, 2.6e8, 1.5e10)] == [
        "0 B",
        "999 B",
        "4.68 kB",
        "260 MB",
        "15 GB",
    ]
