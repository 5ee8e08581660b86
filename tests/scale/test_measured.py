"""From times to links, steps and intervals: a made-up cluster must be found again."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from bnbench.scale.cost_model import (
    ALGORITHMS,
    KINDS,
    Algorithm,
    Compute,
    Link,
    Workload,
    network,
    step,
)
from bnbench.scale.measured import Measured, Timing, fit_link, spread
from bnbench.scale.prediction import CHECKED, Cluster, checks, extrapolate, extrapolate_given

SIZES = [2**n for n in range(10, 27, 2)]
WORK = Workload((16, 32, 64, 2048), 30_000_000)
NEAR, FAR = Link(2e-6, 2e10, 9e-6), Link(3e-5, 1e9, 9e-6)


def timings(kind, algorithm, node, worlds, near=NEAR, far=FAR):
    net = network(algorithm, dict.fromkeys(KINDS, near), dict.fromkeys(KINDS, far), node)
    each = {"all_gather": net.all_gather, "all_reduce": net.all_reduce}[kind]
    return [Timing(ranks, size, each.seconds(ranks, size)) for ranks in worlds for size in SIZES]


def close(found: Link, true: Link) -> None:
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(true), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_link_behind_the_times_is_found(kind, algorithm: Algorithm) -> None:
    close(fit_link(kind, algorithm, 8, timings(kind, algorithm, 8, (2, 4, 8))), NEAR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_link_between_nodes_is_found_behind_the_one_within(kind, algorithm: Algorithm) -> None:
    found = fit_link(kind, algorithm, 4, timings(kind, algorithm, 4, (8, 16, 32)), NEAR)
    close(found, dataclasses.replace(FAR, call=0.0))  # a collective is called once, whatever it crosses


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_one_world_make_the_plain_alpha_beta_model_and_fit_it_exactly(kind) -> None:
    for ranks in (2, 4):
        known = timings(kind, "ring", 8, (ranks,))
        link = fit_link(kind, "ring", 8, known)
        assert link.call == 0
        again = timings(kind, "ring", 8, (ranks,), near=link)
        assert [t.seconds for t in again] == pytest.approx([t.seconds for t in known], rel=1e-6)


def test_no_number_of_a_link_is_negative_however_odd_the_times() -> None:
    chooser = random.Random(1)
    for _ in range(20):
        odd = [Timing(ranks, size, chooser.uniform(1e-6, 1e-2)) for ranks in (2, 4) for size in SIZES]
        for kind in KINDS:
            assert min(dataclasses.astuple(fit_link(kind, "ring", 8, odd))) >= 0


def made_up(worlds=(2, 4), rounds=4, noise=0.0, node=8, overlaps=True) -> Measured:
    """What a machine would find that is as the model says, but for `noise` in every time."""
    chooser = random.Random(0)
    net = network("ring", dict.fromkeys(KINDS, NEAR), dict.fromkeys(KINDS, FAR), node)

    def times(seconds: float) -> list[float]:
        return [seconds * (1 + noise * chooser.random()) for _ in range(rounds)]

    compute, called = Compute(0.1, 0.02, overlaps), 5e-6
    found = []
    for ranks in worlds:
        alone = compute.step + compute.extra + 2 * len(WORK.channels) * called
        steps = {"bn alone": times(compute.step), "sync alone": times(alone)}
        messages: dict = {kind: {} for kind in KINDS}
        if ranks > 1:
            steps["bn"] = times(step(WORK, compute, net, ranks).seconds)
            steps["sync"] = times(step(WORK, compute, net, ranks, ranks).seconds)
            for kind in KINDS:
                for t in timings(kind, "ring", node, (ranks,)):
                    messages[kind][t.payload] = times(t.seconds)
        calls = {kind: times(called) for kind in KINDS}
        found.append({"ranks": ranks, "messages": messages, "alone": calls, "steps": steps})
    about = {"channels": list(WORK.channels), "gradient_bytes": WORK.gradient_bytes}
    whole = about | {"node": node, "overlaps": overlaps, "worlds": found}
    return Measured.read(json.loads(json.dumps(whole)))  # as files and pipes carry it


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_machine_that_is_as_the_model_says_is_predicted_exactly(overlaps: bool) -> None:
    found = checks(made_up(overlaps=overlaps))
    assert [(check.ranks, check.what) for check in found] == [(n, what) for n in (2, 4) for what in CHECKED]
    for check in found:
        assert check.ratio == pytest.approx(1, rel=1e-4)
        assert check.predicted.low == pytest.approx(check.predicted.high, rel=1e-9)


def test_the_prediction_of_a_step_never_looks_at_it() -> None:
    measured = made_up()
    blind = dataclasses.replace(
        measured,
        worlds=tuple(
            dataclasses.replace(world, steps=world.steps | {"bn": [9.0] * 4, "sync": [99.0] * 4})
            for world in measured.worlds
        ),
    )
    assert [c.predicted for c in checks(blind)] == [c.predicted for c in checks(measured)]
    assert extrapolate(blind, Cluster()) == extrapolate(measured, Cluster())


def test_what_is_extrapolated_is_the_model_on_the_links_behind_the_times() -> None:
    """Ranks of two nodes tell both links; then nothing is left to guess."""
    measured = made_up(worlds=(2, 4, 8, 16, 32), node=8)
    true = network("ring", dict.fromkeys(KINDS, NEAR), dict.fromkeys(KINDS, FAR), 8)
    for row in extrapolate(measured, Cluster(8, 64, 4096)):
        if row.algorithm == "ring":
            expected = step(WORK, Compute(0.1, 0.02), true, row.gpus, row.ranks).seconds
            assert row.seconds.value == pytest.approx(expected, rel=1e-3), row


def test_given_links_and_step_need_no_measurement_and_agree_with_one() -> None:
    cluster = Cluster(8, 16, 1024, NEAR, FAR)
    given, measured = (
        extrapolate_given(WORK, Compute(0.1, 0.02), cluster),
        extrapolate(made_up((1,)), cluster),
    )
    for one, other in zip(given, measured, strict=True):
        assert one.seconds.value == pytest.approx(other.seconds.value, rel=1e-6)
        assert one.seconds.low == one.seconds.high


def test_an_interval_holds_the_value_and_noise_widens_it() -> None:
    widths = []
    for noise in (0.0, 0.1, 0.5):
        rows = extrapolate(made_up(rounds=9, noise=noise), Cluster())
        for row in rows:
            assert row.seconds.low <= row.seconds.value <= row.seconds.high
            assert row.overhead.low <= row.overhead.value <= row.overhead.high
        (last,) = (r for r in rows if (r.gpus, r.span, r.algorithm) == (4096, "world", "ring"))
        widths.append(last.seconds.high / last.seconds.low - 1)
    assert widths[0] == pytest.approx(0, abs=1e-9)
    assert widths[0] < widths[1] < widths[2]


def test_equal_rounds_give_the_same_interval_twice() -> None:
    measured = made_up(rounds=9, noise=0.3)
    statement = lambda draw: {"step": draw.compute(measured.worlds[0]).step}  # noqa: E731
    assert spread(measured, statement) == spread(measured, statement)


def test_a_span_is_never_larger_than_its_world() -> None:
    rows = extrapolate_given(WORK, Compute(0.1), Cluster(8, 16, 64, NEAR, FAR))
    assert {row.gpus for row in rows} == {1, 2, 4, 8, 16, 32, 64}
    for row in rows:
        most = {"device": 1, "node": 8, "group": 16, "world": 64}[row.span]
        assert row.ranks == min(row.gpus, most)
        assert (row.overhead.value == 0) == (row.ranks == 1)
