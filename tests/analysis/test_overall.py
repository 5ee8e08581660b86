"""Comparisons over several networks: means of the panels' differences, with intervals of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bnbench.analysis.answer import Answer, Contrast
from bnbench.analysis.build import answer, outline
from bnbench.analysis.collect import collect
from bnbench.analysis.overall import _mean
from bnbench.analysis.question import Question
from bnbench.analysis.statistics import cells
from bnbench.report import verdict
from bnbench.report.html import PageContext, render
from tests.records_factory import make_record, write

MODELS = ("resnet8", "densenet40", "vgg11")


def answered(root: Path, **question: str) -> Answer:
    collected = collect([root])
    summary, asked = cells(collected.runs), Question(**question)  # type: ignore[arg-type]
    return answer(collected, summary, outline(collected, summary, asked), asked)


def write_models(root: Path, seeds: int, gain: float, spread: float = 0.3) -> dict[str, list[float]]:
    """bn and gn on three networks; gn - bn by model, drawn around -gain."""
    draw = np.random.default_rng(0)
    differences: dict[str, list[float]] = {}
    for place, model in enumerate(MODELS):
        for seed in range(seeds):
            error, difference = 10.0 + 5 * place, -gain + spread * draw.normal()
            write(root, make_record(model=model, seed=seed, error=error))
            write(root, make_record(model=model, seed=seed, norm="gn", nbs=None, error=error + difference))
            differences.setdefault(model, []).append(difference)
    return differences


def test_with_few_seeds_it_is_students_interval_of_the_means_by_seed(tmp_path: Path) -> None:
    differences = write_models(tmp_path, 3, gain=2.0)
    found = answered(tmp_path)
    (together,) = found.overall
    assert together.title == "resnet8, vgg11 and densenet40 on digits, together"
    (contrast,) = together.contrasts
    means = np.mean(list(differences.values()), axis=0)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert contrast.difference is not None
    assert (contrast.difference.mean, contrast.difference.low, contrast.difference.high) == pytest.approx(
        (means.mean(), low, high)
    )
    assert contrast.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert (contrast.pairs, contrast.outcome, contrast.note) == (3, "better", "mean over 3 panels")
    assert contrast.improvement == 1.0
    assert len(found.panels) == 3


def test_from_ten_seeds_on_a_bootstrap_over_the_seeds_is_beside_it(tmp_path: Path) -> None:
    """Over the seeds' means, and not panel by panel: seeds may go alike in all panels."""
    differences = write_models(tmp_path, 12, gain=0.2)
    (contrast,) = answered(tmp_path).overall[0].contrasts
    means = np.mean(list(differences.values()), axis=0)
    rng = np.random.default_rng(1)
    drawn = means[rng.integers(0, 12, (20_000, 12))].mean(axis=1)
    assert (contrast.bootstrap_low, contrast.bootstrap_high) == pytest.approx(
        tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.02
    )
    low, high = stats.t.interval(0.95, 11, means.mean(), stats.sem(means))
    assert contrast.difference is not None
    assert (contrast.difference.low, contrast.difference.high) == pytest.approx((low, high))
    assert contrast.outcome == "better"


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_its_interval_covers_where_a_seeds_runs_go_alike_in_all_panels(alike: float) -> None:
    draw, rounds, hits = np.random.default_rng([7, round(10 * alike)]), 1000, 0
    side = (("a", "b"), ("c", "d"))
    blank = Contrast("p", "f", "a", "b", "gn", "bn", 2, 10, "not distinguishable")
    two = [replace(blank, left=left, right=right, sides=((left, right),)) for left, right in side]
    zero = dict.fromkeys(range(10), 0.0)
    for _ in range(rounds):
        shared = draw.normal(0, alike**0.5, 10)
        own = [dict(enumerate(shared + draw.normal(0, (1 - alike) ** 0.5, 10))) for _ in side]
        found = _mean("both", two, {"a": own[0], "b": zero, "c": own[1], "d": zero}, 1.0).difference
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
    assert stats.binomtest(hits, rounds, 0.95).pvalue > 0.001


def test_none_where_there_is_one_panel_or_panels_differ_otherwise(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            write(tmp_path, make_record(lr=lr, seed=seed, error=10.0 + seed))
            write(tmp_path, make_record(lr=lr, seed=seed, norm="gn", nbs=None, error=12.0 + 2 * seed))
    found = answered(tmp_path)
    assert len(found.panels) == 2
    assert found.overall == ()


def test_a_side_that_diverged_in_one_network_is_not_averaged_over(tmp_path: Path) -> None:
    write_models(tmp_path, 3, gain=2.0)
    write(tmp_path, make_record(model="vgg11", seed=3, error=10.0))
    write(tmp_path, make_record(model="vgg11", seed=3, norm="gn", nbs=None, status="diverged"))
    (contrast,) = answered(tmp_path).overall[0].contrasts
    assert (contrast.outcome, contrast.difference, contrast.p_holm) == ("lost", None, None)
    assert contrast.note == "a side diverged in 1 of 3 panels"


def test_only_seeds_that_all_panels_have_count(tmp_path: Path) -> None:
    write_models(tmp_path, 3, gain=2.0)
    write(tmp_path, make_record(model="vgg11", seed=3, error=10.0))
    write(tmp_path, make_record(model="vgg11", seed=3, norm="gn", nbs=None, error=99.0))
    (contrast,) = answered(tmp_path).overall[0].contrasts
    assert (contrast.pairs, contrast.outcome) == (3, "better")


def test_correction_over_the_page_counts_it_too(tmp_path: Path) -> None:
    write_models(tmp_path, 3, gain=2.0)
    page, line = answered(tmp_path, family="page"), answered(tmp_path)
    all_p = sorted(each.p for panel in page.judged for each in panel.contrasts if each.p is not None)
    smallest = min((each for panel in page.judged for each in panel.contrasts), key=lambda each: each.p or 1)
    assert len(all_p) == 4
    assert smallest.p_holm == pytest.approx(4 * all_p[0])
    assert line.overall[0].contrasts[0].p_holm == line.overall[0].contrasts[0].p


def test_every_renderer_shows_it(tmp_path: Path) -> None:
    write_models(tmp_path, 3, gain=2.0)
    found = answered(tmp_path)
    title = "resnet8, vgg11 and densenet40 on digits, together"
    sentence = found.overall[0].sentences[0]
    assert sentence.startswith("At NBS 64, gn beats bn by ")
    page = render(found, PageContext("bnbench report"))
    for text in (page, verdict.section(found), "\n".join(verdict.lines(found)), verdict.to_csv(found)):
        assert title in text
    assert sentence in verdict.section(found)
    assert "other seeds on these networks and data, not for others" in page


def test_it_names_the_networks_that_make_the_comparison_and_no_others(tmp_path: Path) -> None:
    write_models(tmp_path, 3, gain=2.0)
    for model in MODELS[:2]:
        for seed in range(3):
            write(tmp_path, make_record(model=model, norm="ln", nbs=None, seed=seed, error=9.0 + seed))
    titles = [panel.title for panel in answered(tmp_path).overall]
    assert titles == [
        "resnet8, vgg11 and densenet40 on digits, together",
        "resnet8 and densenet40 on digits, together",
    ]
