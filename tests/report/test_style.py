"""A line looks the same in every figure, and no two lines of one figure look alike."""

from __future__ import annotations

import re

from bnbench.report.style import DASHES, MARKERS, PALETTE, looks


def test_no_two_of_49_lines_look_alike_and_none_has_a_neighbours_colour() -> None:
    found = looks(range(49))
    assert len({(look.colour, look.marker) for look in found.values()}) == len(PALETTE) * len(MARKERS) == 49
    for line in range(48):
        assert found[line].colour != found[line + 1].colour


def test_a_lines_look_depends_on_its_place_alone() -> None:
    few, many = looks("abc"), looks("abcdefghij")
    assert all(few[line] == many[line] for line in "abc")
    assert looks("aabca") == few


def test_each_marker_and_dash_of_matplotlib_has_plotlys() -> None:
    for look in looks(range(49)).values():
        assert look.symbol == MARKERS[look.marker]
        assert look.dash == DASHES[look.dashes]
        red, green, blue = (int(part) for part in re.findall(r"\d+", look.band)[:3])
        assert f"#{red:02X}{green:02X}{blue:02X}" == look.colour
