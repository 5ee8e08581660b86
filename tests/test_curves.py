"""A run's series: what is written is what is read."""

from __future__ import annotations

from bnbench.curves import append_rows, points, read_rows
from bnbench.records import HEALTH


def test_a_place_that_looks_like_a_number_is_a_name(tmp_path):
    """Of nested Sequentials a module's path is such as 0.10, and 0.1 is another one."""
    places = ["0.10", "0.1", "10", "1e2", "nan"]
    rows = [
        {"step": 4, "signal": "drift", "place": place, "value": float(value)}
        for value, place in enumerate(places)
    ]
    append_rows(tmp_path / HEALTH, rows)
    assert list(read_rows(tmp_path / HEALTH)) == rows
    (point,) = points(tmp_path).values()
    assert [point[f"health/drift/{place}"] for place in places] == [0.0, 1.0, 2.0, 3.0, 4.0]
