"""A figure's verdict, text and file form."""

from __future__ import annotations

import json
import math

import pytest

from bnbench.benchmarks.figures import Figure, figure_lines


@pytest.mark.parametrize(
    ("low", "high", "better", "met"),
    [
        (0.8, 1.0, "lower", "yes"),
        (0.9, 1.1, "lower", "open"),
        (1.1, 1.2, "lower", "no"),
        (1.0, 1.2, "higher", "yes"),
        (0.9, 1.1, "higher", "open"),
        (0.8, 0.9, "higher", "no"),
    ],
)
def test_the_verdict_is_of_the_interval(low, high, better, met):
    figure = Figure("f", (low + high) / 2, low, high, target=1.0, better=better)
    assert figure.met == met
    bound = {"lower": "at most", "higher": "at least"}[better]
    assert figure.aim == f"{bound} 1: {met}"


def test_a_single_measurement_is_judged_by_itself_and_has_no_interval():
    assert Figure("f", 1.0, target=1.0).met == "yes" and Figure("f", 1.1, target=1.0).met == "no"
    assert Figure("f", 1.1).met is None and Figure("f", 1.1).aim == ""
    assert Figure("f", 1.1).number == "1.100" and Figure("f", 0.00577).number == "0.0058"
    assert Figure("f", 1200, 1200, 1200).number == "1,200"


def test_it_is_the_median_of_rounds():
    figure = Figure.of("f", [3.0, 1.0, 2.0, 50.0, 0.5], unit="s", target=2)
    assert (figure.value, figure.low, figure.high, figure.unit) == (2.0, 0.5, 50.0, "s")
    alone = Figure.of("f", [3.0], unit="s")
    assert (alone.value, alone.low, alone.high) == (3.0, None, None), "its noise is not known"


def test_it_comes_back_from_a_file():
    for figure in (Figure("f", 1.0, 0.5, 2.0, "MB", 3.0, "higher"), Figure("g", 2.0)):
        row = json.loads(json.dumps(figure.to_json(), allow_nan=False))
        assert set(row) == {"name", "value", "low", "high", "unit", "target", "met", "better"}
        assert row["met"] == figure.met
        assert Figure.from_json(row) == figure


@pytest.mark.parametrize(
    "row",
    [
        {"name": "f"},
        {"name": "f", "value": math.nan},
        {"name": "f", "value": "1"},
        {"name": "f", "value": 1.0, "low": 2.0, "high": 3.0},
        {"name": "f", "value": 1.0, "low": 0.5},
        {"name": "f", "value": 1.0, "better": "faster"},
        {"name": "f", "value": 1.0, "colour": "red"},
    ],
)
def test_what_is_no_figure_is_refused_with_its_name(row):
    with pytest.raises(ValueError, match="f"):
        Figure.from_json(row)


def test_lines_are_aligned_with_digits_of_the_value():
    figures = [
        Figure("images a second", 105_321.4, 99_000.0, 110_000.0, "images/s"),
        Figure("ratio", 6.51234, 6.0, 7.25, target=10, better="higher"),
    ]
    assert figure_lines(figures) == [
        "images a second  105,321 [99,000, 110,000] images/s",
        "ratio            6.512 [6.000, 7.250]      x         at least 10: no",
    ]
