"""Comparisons: known data in, known verdicts out, and none where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from bnbench.analysis.answer import CellView, Interval, Panel
from bnbench.analysis.contrasts import Errors, contrasts
from bnbench.analysis.crossover import crossovers
from bnbench.analysis.question import FAMILIES, Family
from bnbench.analysis.sentences import sentences

SIZES = (2, 4, 8, 64)
Numbers = dict[tuple[str, int | None], Sequence[float]]


def cell(
    line: str, nbs: int | None, values: Sequence[float], diverged: int = 0, device: int = 64
) -> CellView:
    statuses = {"completed": len(values)} | ({"diverged": diverged} if diverged else {})
    span = None if nbs is None else "ghost" if nbs < device else "device" if nbs == device else "world"
    error = Interval(float(np.mean(values)), None, None, len(values)) if len(values) else None
    return CellView(
        f"{line}-{nbs}",
        "p",
        line,
        line,
        nbs,
        span,
        {},
        error,
        tuple(values),
        statuses,
        step_ms=10.0 + (nbs or 0) / 32,
    )


def panel_of(numbers: Numbers, **options: int) -> tuple[Panel, Errors]:
    """A panel of lines by NBS, seeds in the order of the values."""
    cells = [cell(line, nbs, values, **options) for (line, nbs), values in numbers.items()]
    errors = {own.key: dict(enumerate(own.errors)) for own in cells}
    return Panel("p", "p", tuple(cells)), errors


def compared(numbers: Numbers, family: Family = "line", **options: int) -> Panel:
    panel, errors = panel_of(numbers, **options)
    (found,) = contrasts([panel], errors, {}, family=family)
    found = replace(found, crossovers=tuple(crossovers(found)))
    return replace(found, sentences=sentences(found, 1.0))


CLEAR: Numbers = {
    ("bn", 2): (30.0, 31.0, 30.4),
    ("bn", 4): (20.1, 20.0, 20.4),
    ("bn", 8): (15.2, 15.0, 15.3),
    ("bn", 64): (10.0, 10.2, 10.1),
    ("gn", None): (15.1, 15.1, 15.2),
}


def test_known_differences_give_known_verdicts() -> None:
    panel = compared(CLEAR)
    assert [contrast.outcome for contrast in panel.contrasts] == [
        "better",
        "better",
        "not distinguishable",
        "worse",
    ]
    first, *_, last = panel.sentences
    assert first.startswith("At NBS 4 and below, gn beats bn by 15.3 [")
    assert "at NBS 8, gn and bn are not distinguishable" in first
    assert "at NBS 64, bn beats gn by 5.0 [" in first
    assert first.endswith("the two meet near NBS 8, between 4 and 64.") or "the two meet near NBS 8." in first
    assert last.startswith("Not distinguishable is not equal: 1 of 4 comparisons is open with 3 seeds")


def test_a_meeting_lies_where_the_means_are_equal_between_the_nearest_verdicts() -> None:
    numbers: Numbers = {
        ("bn", 2): (20.0, 20.2, 20.1),
        ("bn", 32): (10.0, 10.2, 10.1),
        ("gn", None): (15.0, 15.2, 15.1 + 1e-3),
    }
    panel = compared(numbers)
    (found,) = panel.crossovers
    assert found.nbs == pytest.approx(8, rel=0.01)  # the middle of log2 from 2 to 32
    assert (found.low, found.high) == (2, 32), "nothing was measured between"
    assert "the two meet near NBS 8, between 2 and 32." in " ".join(panel.sentences).replace("8.0", "8")
    assert compared(numbers | {("gn", None): (5.0, 5.2, 5.1)}).crossovers == ()


def test_without_a_verdict_on_either_side_a_meeting_could_lie_anywhere() -> None:
    """Not even where one of many comparisons would be a verdict alone."""
    numbers: Numbers = {("bn", nbs): (14.0, 16.0, 15.1) for nbs in SIZES}
    numbers |= {("bn", 2): (16.0, 17.0, 16.4), ("gn", None): (15.1, 15.5, 15.3)}
    panel = compared(numbers)
    assert panel.contrasts[0].p is not None and panel.contrasts[0].p < 0.05
    assert {each.outcome for each in panel.contrasts} == {"not distinguishable"}
    assert panel.crossovers == ()
    assert "meet" not in " ".join(panel.sentences)


def test_a_meeting_is_open_to_the_side_without_a_verdict() -> None:
    numbers: Numbers = {
        ("bn", 4): (11.0, 12.0, 9.9),
        ("bn", 8): (9.0, 9.1, 8.9),
        ("gn", None): (10.5, 10.4, 10.0),
    }
    panel = compared(numbers)
    (found,) = panel.crossovers
    assert (found.low, found.high, found.first) == (None, 8, 4)
    assert ", below 8." in panel.sentences[0]


def test_meetings_are_not_joined_over_a_place_that_is_not_compared() -> None:
    """The meeting may be there."""
    numbers: Numbers = {
        ("bn", 4): (13.0, 13.2, 12.9, 13.1),
        ("bn", 16): (7.1, 7.0, 6.9),
        ("bn", 64): (7.0, 7.1, 6.9, 7.0),
        ("gn", None): (10.0, 10.0, 10.0, 10.1),
    }
    (found,) = compared(numbers).crossovers
    assert found.nbs == pytest.approx(8, rel=0.05)
    assert (found.low, found.high) == (4, 16)
    assert compared(numbers | {("bn", 16): (7.1,)}).crossovers == (), "4 and 64 are no neighbours"


def test_a_meeting_may_lie_at_what_was_measured() -> None:
    numbers: Numbers = {
        ("bn", 4): (13.0, 13.2, 12.8),
        ("bn", 16): (9.0, 11.0, 10.0),
        ("bn", 64): (7.0, 6.8, 7.2),
        ("gn", None): (10.0, 10.0, 10.0),
    }
    (found,) = compared(numbers).crossovers
    assert found.nbs == pytest.approx(16)
    assert (found.low, found.high, found.first, found.last) == (4, 64, 4, 64)


def test_a_verdict_beyond_another_meeting_holds_no_end() -> None:
    numbers: Numbers = {
        ("bn", 2): (9.0, 12.0, 9.1),
        ("bn", 4): (11.0, 9.0, 9.9),
        ("bn", 8): (9.9, 10.9, 9.8),
        ("bn", 64): (30.0, 30.2, 29.9),
        ("gn", None): (10.0, 10.1, 10.0),
    }
    found = compared(numbers).crossovers
    assert [(each.low, each.high) for each in found] == [(None, 64)]
    assert 4 < found[0].nbs < 8


def test_meetings_are_seldom_told_where_there_are_none() -> None:
    """25 of 100 by the interval of the difference on the line between what was measured."""
    draw, told, sweeps = np.random.default_rng(3), 0, 1000
    for _ in range(sweeps):
        numbers: Numbers = {("bn", nbs): 15 + draw.normal(0, 1, 3) for nbs in (2, 4, 8, 16, 32, 64)}
        numbers[("gn", None)] = 15 + draw.normal(0, 1, 3)
        panel, errors = panel_of(numbers)
        (found,) = contrasts([panel], errors, {})
        told += bool(crossovers(found))
    assert stats.binomtest(told, sweeps, 0.05, alternative="greater").pvalue > 0.01


def test_a_true_meeting_lies_between_its_ends() -> None:
    """Also where the error is no straight line over log2 NBS, as that of small batches is not."""
    draw, told, within = np.random.default_rng(4), 0, 0
    for _ in range(200):
        paths = draw.normal(0, 1, 5)
        numbers: Numbers = {
            ("bn", nbs): 10 + 40 / nbs + paths + draw.normal(0, 0.5, 5) for nbs in (2, 4, 16, 64)
        }
        numbers[("gn", None)] = 15 + paths + draw.normal(0, 0.5, 5)
        found = compared(numbers).crossovers
        told += bool(found)
        within += any((each.low or 0) <= 8 <= (each.high or 64) for each in found)
    assert told > 180
    assert within >= 0.95 * told


def test_a_side_that_diverged_is_not_compared_but_told() -> None:
    panel, errors = panel_of(CLEAR)
    cells = tuple(
        cell("bn", 2, (30.0, 31.0), diverged=1) if own.key == "bn-2" else own for own in panel.cells
    )
    errors = {**errors, "bn-2": {0: 30.0, 1: 31.0}}
    (found,) = contrasts([replace(panel, cells=cells)], errors, {"bn-2": {2}})
    lost = found.contrasts[0]
    assert (lost.outcome, lost.p, lost.note) == ("lost", None, "bn at NBS 2 diverged in 1 of 3 runs")
    assert [contrast.p_holm is not None for contrast in found.contrasts] == [False, True, True, True]


def test_wider_statistics_are_held_against_a_devices() -> None:
    numbers: Numbers = {("bn", 32): (12.0, 12.4, 12.1), ("bn", 64): (11.0, 11.5, 11.2)}
    panel = compared(numbers, device=32)
    (contrast,) = panel.contrasts
    assert (contrast.left, contrast.right, contrast.outcome) == ("bn-64", "bn-32", "better")
    sentence = panel.sentences[0]
    assert (
        "over 64 images (world, across ranks) rather than a device's 32 lowers the error by 0.9 [" in sentence
    )
    assert "for +1.0 ms a step (+9%)" in sentence


def test_one_seed_is_no_comparison() -> None:
    panel = compared({key: values[:1] for key, values in CLEAR.items()})
    assert {contrast.outcome for contrast in panel.contrasts} == {"too few pairs"}
    assert "too little to compare gn with bn (1 seed(s) in common" in panel.sentences[0]


def test_a_wider_family_is_never_kinder() -> None:
    numbers = dict(CLEAR) | {("in", None): (15.0, 15.6, 14.9), ("ln", None): (14.0, 15.9, 15.1)}
    by_family = {family: compared(numbers, family).contrasts for family in ("line", "panel", "page")}  # type: ignore[arg-type]
    assert tuple(by_family) == FAMILIES
    for line, panel, page in zip(*by_family.values(), strict=True):
        assert line.p == panel.p == page.p
        assert line.p_holm is not None and panel.p_holm is not None
        assert line.p_holm <= panel.p_holm == page.p_holm


@pytest.mark.parametrize(
    ("family", "seeds", "sweeps"),
    [("line", 3, 2000), ("page", 3, 2000), ("line", 5, 2000), ("line", 12, 200)],
)
def test_null_sweeps_have_a_verdict_no_more_often_than_one_in_twenty(
    family: Family, seeds: int, sweeps: int
) -> None:
    """The 99% Clopper-Pearson lower bound of the family-wise rate of false verdicts stays at or below 5%."""
    draw = np.random.default_rng([seeds, *family.encode()])
    wrong: dict[str, int] = {}
    keys = [("bn", nbs) for nbs in SIZES] + [("gn", None), ("in", None)]
    for _ in range(sweeps):
        paths = draw.normal(0, 1, seeds)  # what a seed's runs have in common
        numbers: Numbers = {key: 15 + paths + draw.normal(0, 1, seeds) for key in keys}
        panel, errors = panel_of(numbers)
        (found,) = contrasts([panel], errors, {}, family=family)
        groups: dict[str, bool] = {}
        for contrast in found.contrasts:
            name = contrast.family if family == "line" else "all"
            groups[name] = groups.get(name, False) or contrast.outcome in ("better", "worse")
        for name, said in groups.items():
            wrong[name] = wrong.get(name, 0) + said
    for name, count in wrong.items():
        lower = stats.binomtest(count, sweeps, alternative="greater").proportion_ci(0.99, "exact").low
        assert lower <= 0.05, f"{name}: {count} of {sweeps}"


def test_a_true_difference_is_found() -> None:
    """The law above would hold for one that never speaks."""
    draw = np.random.default_rng(5)
    found = 0
    for _ in range(100):
        paths = draw.normal(0, 1, 5)
        numbers: Numbers = {("bn", nbs): 15 + paths + draw.normal(0, 0.5, 5) for nbs in SIZES}
        numbers[("gn", None)] = 12 + paths + draw.normal(0, 0.5, 5)
        found += all(contrast.outcome == "better" for contrast in compared(numbers).contrasts)
    assert found > 80


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([2, 3, 4, 6, 8, 12, 16, 24, 48, 64]), min_size=2, max_size=6, unique=True),
    st.integers(2, 6),
    st.integers(0, 2**32 - 1),
)
@example([2, 64], 3, 3)
@example([2, 8, 64], 2, 62)
@example([2, 4, 8, 16, 32, 64], 3, 192)
def test_a_meeting_lies_within_its_interval_and_what_was_measured(
    sizes: list[int], seeds: int, draw: int
) -> None:
    rng = np.random.default_rng(draw)
    numbers: Numbers = {("bn", nbs): tuple(12 - nbs / 8 + rng.normal(size=seeds)) for nbs in sorted(sizes)}
    panel, errors = panel_of(numbers | {("gn", None): tuple(8 + rng.normal(size=seeds))})
    (judged,) = contrasts([panel], errors, {})
    for found in crossovers(judged):
        assert min(sizes) <= found.nbs <= max(sizes)
        assert found.low is None or min(sizes) <= found.low <= found.nbs
        assert found.high is None or found.nbs <= found.high <= max(sizes)


@pytest.mark.parametrize(
    ("numbers", "said", "unsaid"),
    [
        # Two equal differences say nothing of a third.
        (
            {("bn", 8): (10.0, 11.0), ("gn", 8): (11.0, 12.0)},
            "the differences of 2 seeds are equal: nothing tells",
            "in common",
        ),
        # An interval without width, in a family of one: nothing was corrected, and no spread tells how many seeds.
        (
            {("bn", 8): (10.0, 11.0, 12.0), ("gn", 8): (11.0, 12.0, 13.0)},
            "gn and bn are not distinguishable (gn - bn: +1.00",
            "far more",
        ),
        # `none beats gn` would say the opposite.
        (
            {("bn", 8): (10.0, 11.0, 12.0), ("none", None): (20.0, 21.1, 22.0)},
            "bn beats the network without norms by",
            "none",
        ),
        # What is between was not compared.
        (
            {("bn", n): (10.0, 11.0, 12.0) for n in (2, 4, 8)}
            | {("brn", n): (20.0, 21.1, 22.0) for n in (2, 8)}
            | {("gn", None): (20.0, 21.1, 22.0)},
            "At NBS 2 and 8, bn beats brn by",
            "every NBS from 2 to 8, bn beats brn",
        ),
    ],
    ids=["equal", "no width", "none", "gaps"],
)
def test_sentences_say_what_is_so(numbers: Numbers, said: str, unsaid: str) -> None:
    told = " ".join(compared(numbers).sentences)
    assert said in told
    assert unsaid not in told
