"""Statistics of paired runs, against the libraries that are known for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bnbench.analysis.paired import bootstrap, holm, improvement, paired, seeds_needed

NUMBERS = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=3, max_size=12, unique=True)


@given(NUMBERS)
@settings(deadline=None)
def test_paired_is_scipys_t_test(differences: list[float]) -> None:
    found, known = paired(differences), stats.ttest_1samp(differences, 0)
    assert found is not None
    interval = known.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(differences), *interval))
    assert found.p == pytest.approx(known.pvalue)


@given(NUMBERS, NUMBERS)
@settings(deadline=None)
def test_improvement_is_mann_whitneys_u(left: list[float], right: list[float]) -> None:
    found = improvement(left, right)
    assert found == pytest.approx(stats.mannwhitneyu(right, left).statistic / (len(left) * len(right)))
    assert improvement(right, left) == pytest.approx(1 - found)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    """At 30 pairs, where it comes near to it."""
    draw = np.random.default_rng(0)
    hits, widths, rounds = 0, [], 200
    for _ in range(rounds):
        low, high = bootstrap(draw.normal(50, 1, 30))
        hits += low <= 50 <= high
        widths.append(high - low)
    assert stats.binomtest(hits, rounds, 0.95).pvalue > 0.001
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(30), rel=0.1)


def test_of_ten_pairs_it_covers_less_than_students_interval() -> None:
    """Which is why no verdict rests on it."""
    draw, rounds = np.random.default_rng(1), 500
    samples = draw.normal(0, 1, (rounds, 10))
    covered = sum(low <= 0 <= high for low, high in map(bootstrap, samples))
    students = sum(own.low <= 0 <= own.high for row in samples if (own := paired(row)) is not None)
    assert 0.87 * rounds < covered < 0.93 * rounds
    assert stats.binomtest(students, rounds, 0.95).pvalue > 0.001


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_where_one_side_is_skewed_a_test_errs_more_often(pairs: int) -> None:
    """docs/report.md says so."""
    draw, rounds = np.random.default_rng([2, pairs]), 3000
    samples = draw.lognormal(0, 1, (rounds, pairs)) - np.exp(0.5) + draw.normal(0, 0.1, (rounds, pairs))
    wrong = sum(own.p < 0.05 for row in samples if (own := paired(row)) is not None)
    assert 0.11 * rounds < wrong < 0.2 * rounds


def test_the_bootstrap_is_the_same_every_time() -> None:
    values = [0.3, -0.1, 0.5, 0.2, 0.9, 0.4, 0.0, 0.6, 0.1, 0.7]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap([1.0] * 10) == (1.0, 1.0)


def test_a_mean_of_rounding_alone_is_no_difference() -> None:
    found = paired([-1.8e-15] * 6)
    assert found is not None
    assert (found.mean, found.p) == (0.0, 1.0)


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.5])
def test_the_seeds_needed_find_the_difference_that_often(sd: float) -> None:
    n = seeds_needed(sd, 1.0)
    assert n is not None
    draw, rounds = np.random.default_rng(1), 4000
    found = {
        count: np.mean(stats.ttest_1samp(draw.normal(1.0, sd, (rounds, count)), 0, axis=1).pvalue < 0.05)
        for count in {n, max(n - 1, 2)}
    }
    assert found[n] > 0.8 - 0.02
    if n > 2:
        assert found[n - 1] < 0.8 + 0.02


def test_seeds_needed_at_its_ends() -> None:
    assert seeds_needed(0.0, 1.0) == 2
    assert seeds_needed(1e-6, 1.0) == 2
    assert seeds_needed(1000.0, 1.0) is None
    numbers = [seeds_needed(sd, 1.0) or 0 for sd in (0.1, 0.5, 1, 2, 4, 8)]
    assert numbers == sorted(numbers)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
