"""The answer from records: time to a target, costs, published numbers, sides, and what it takes to read many."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from bnbench.analysis.answer import Answer
from bnbench.analysis.build import answer, outline
from bnbench.analysis.collect import collect
from bnbench.analysis.panels import heading
from bnbench.analysis.published import tables
from bnbench.analysis.question import Question
from bnbench.analysis.statistics import cells
from bnbench.records import EPOCHS, Record
from tests.records_factory import make_record, write

HEAD = "epoch,step,lr,train_loss,train_error,val_loss,val_error,train_seconds,val_seconds,images_per_s\n"


def answered(*roots: Path, **question: Any) -> Answer:
    collected = collect(roots)
    summary, asked = cells(collected.runs), Question(**question)
    return answer(collected, summary, outline(collected, summary, asked), asked)


def run(root: Path, errors: tuple[float, ...] = (), seconds: float = 2.0, **options: Any) -> Record:
    """A record with its evaluations, each after as many seconds of training."""
    step_ms, memory, speed = (
        options.pop("step_ms", None),
        options.pop("memory", {}),
        options.pop("speed", None),
    )
    made = make_record(**options)
    record = dataclasses.replace(made, memory=memory)
    if step_ms is not None:
        record = dataclasses.replace(record, timings=made.timings | {"step_ms": step_ms})
    if speed is not None:
        record = dataclasses.replace(record, **{"speed": speed}) if hasattr(record, "speed") else record
    path = write(root, record)
    rows = [f"{i},{10 * (i + 1)},0.1,1,50,1,{error},{seconds},0.1,100\n" for i, error in enumerate(errors)]
    path.with_name(EPOCHS).write_text(HEAD + "".join(rows))
    return record


def test_time_to_a_target_is_training_until_the_first_evaluation_there(tmp_path: Path) -> None:
    run(tmp_path, (30.0, 20.0, 10.0), seconds=2.0, seed=0, world_size=2)
    run(tmp_path, (30.0, 12.0, 10.0), seconds=2.0, seed=1, world_size=2)
    run(tmp_path, (40.0, 30.0, 25.0), seconds=1.0, seed=0, nbs=2, world_size=2)
    run(tmp_path, (40.0, 15.0, 14.0), seconds=1.0, seed=1, nbs=2, world_size=2)
    found = answered(tmp_path, target=15.0)
    times = {found.cells[time.cell].nbs: time for time in found.times}
    wide = times[64]
    assert (wide.reached, wide.runs, wide.target) == (2, 2, 15.0)
    assert wide.seconds is not None and wide.device_hours is not None
    assert wide.seconds.mean == pytest.approx(5.0)  # 6 and 4
    assert wide.device_hours == pytest.approx(2 * 5.0 / 3600)
    assert (times[2].reached, times[2].runs, times[2].seconds) == (1, 2, None)


def test_a_curve_is_the_mean_over_seeds_at_common_steps(tmp_path: Path) -> None:
    run(tmp_path, (30.0, 20.0, 10.0), seed=0)
    run(tmp_path, (40.0, 10.0), seed=1)
    run(tmp_path, (90.0,), seed=2, status="diverged")
    (curve,) = answered(tmp_path).curves
    assert curve.step == (10, 20)
    assert curve.error == (35.0, 15.0)
    assert curve.seconds == (2.0, 4.0)
    assert curve.low[0] is not None and curve.low[0] < 35.0


def test_what_a_norm_adds_is_told_against_the_same_network_without(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, seed=seed, step_ms=12.0)
        run(tmp_path, seed=seed, norm="none", nbs=None, norm_settings={"init": "fixup"}, step_ms=9.0)
    found = answered(tmp_path)
    costs = {found.cells[cost.cell].norm: cost for cost in found.costs}
    assert costs["bn"].added_ms == pytest.approx(3.0)
    assert costs["bn"].share == pytest.approx(0.25)
    assert costs["none"].added_ms == pytest.approx(0.0)
    alone = tmp_path / "alone"
    run(alone, step_ms=12.0)
    (cost,) = answered(alone).costs
    assert (cost.control_ms, cost.added_ms) == (None, None)


def test_the_front_holds_what_nothing_beats(tmp_path: Path) -> None:
    run(tmp_path, error=10.0, step_ms=10.0, memory={"peak_bytes": 100})
    run(tmp_path, nbs=2, error=12.0, step_ms=11.0, memory={"peak_bytes": 100})
    run(tmp_path, nbs=4, error=12.0, step_ms=11.0, memory={"peak_bytes": 90})
    run(tmp_path, nbs=8, error=20.0, step_ms=9.0, memory={"peak_bytes": 200})
    assert {cell.nbs: cell.on_front for cell in answered(tmp_path).cells.values()} == {
        64: True,
        2: False,
        4: True,
        8: True,
    }


def test_a_published_number_stands_beside_what_meets_it(tmp_path: Path) -> None:
    whole = {"data.max_train": None}
    where = {"model": "resnet50", "data": "imagenet", "global_batch": 16, "world_size": 8}
    run(tmp_path, **where, nbs=2, error=34.0, identity_of=whole | {"recipe.zero_gamma": True})
    run(tmp_path, **where, nbs=4, error=26.0)  # on a part of the data
    found = [row for row in answered(tmp_path).published if row.source.startswith("Wu")]
    (row,) = found
    assert row.value == 34.7
    assert row.ours is not None and row.ours.mean == 34.0
    assert "epochs 3, there 100" in row.differs
    assert "zero_gamma" not in row.differs


def test_every_published_number_has_a_source_and_how_it_is_known() -> None:
    known = tables()
    for row in known["errors"]:
        source = known["sources"][row["source"]]
        assert source["cite"] and source["evidence"] and source["url"].startswith("https://")
        assert {"model.name", "data.name", "norm.name"} <= row["where"].keys()
        assert 0 < row["error"] < 100
    places = [str(sorted(row["where"].items())) + row["source"] for row in known["errors"]]
    assert len(set(places)) == len(places)


def test_sides_tell_a_regression_from_noise_and_from_nothing(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed, noise in enumerate((0.0, 0.1, -0.1, 0.05)):
        run(a, seed=seed, error=10 + noise, step_ms=10.0 + noise)
        run(b, seed=seed, error=12 + 2 * noise, step_ms=13.0 + noise)
        run(a, seed=seed, nbs=2, error=20 + noise, step_ms=10.0)
        run(b, seed=seed, nbs=2, error=20 + noise, step_ms=8.0 + noise)
        run(a, seed=seed, nbs=4, error=15 + noise, step_ms=10.0)
        run(b, seed=seed, nbs=4, error=15 + (-1) ** seed, step_ms=10.0 + (-1) ** seed)
    run(b, nbs=8)
    found = answered(a, b)
    sides = {found.cells[side.cell].nbs: side for side in found.sides}
    assert sides.keys() == {64, 2, 4}
    assert (sides[64].outcome, sides[64].speed_outcome) == ("worse", "worse")
    assert (sides[2].outcome, sides[2].speed_outcome) == ("identical", "better")
    assert (sides[4].outcome, sides[4].speed_outcome) == ("not distinguishable", "not distinguishable")
    assert sides[64].difference is not None and sides[64].difference.mean == pytest.approx(2.0, abs=0.1)
    assert sides[64].speed is not None and sides[64].speed.mean == pytest.approx(1.3, abs=0.02)
    assert answered(a).sides == ()


def test_a_baseline_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, norm="gn", nbs=None)
    with pytest.raises(ValueError, match=r"--baseline ln is in none of these records: choose one of bn, gn"):
        answered(tmp_path, baseline="ln")
    assert answered(tmp_path, baseline="gn").baseline == "gn"


@pytest.mark.parametrize(("key", "value"), [("resolve", 0.0), ("resolve", math.nan), ("target", 101.0)])
def test_a_question_without_sense_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"--{key}"):
        Question(**{key: value})


def test_of_runs_that_two_folders_hold_the_verdict_names_the_folder(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(3):
        for root in (a, b):
            run(root, seed=seed, error=10.0 + seed / 10)
        run(a, seed=seed, norm="gn", nbs=None, error=8.0 + seed / 5)
        run(b, seed=seed, norm="gn", nbs=None, error=12.0 + seed / 5)
    for first, winner in ((a, "gn"), (b, "bn")):
        *_, said = (panel := answered(*(a, b) if first is a else (b, a)).panels[0]).sentences
        assert panel.sentences[0].startswith(f"At NBS 64, {winner} beats ")
        assert said == f"6 runs are in several folders: here those of {first} count."
    assert not any("folders" in said for said in answered(a).panels[0].sentences)


def test_folders_without_a_run_in_common_are_said_to_stand_in_one_table(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(3):
        run(a, seed=seed)
        run(b, seed=seed, norm="gn", nbs=None)
    *_, said = answered(a, b).panels[0].sentences
    assert said == "The two folders hold no run in common: their cells stand in one table."
    run(b, seed=0)
    assert not any("in common:" in said for said in answered(a, b).panels[0].sentences)


def test_a_title_names_the_optimizer_and_not_what_follows_from_it(tmp_path: Path) -> None:
    sgd, adamw = {"momentum": 0.9}, {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8}
    for options in (sgd, adamw):
        for norm, nbs in (("bn", 64), ("gn", None)):
            made = make_record(norm=norm, nbs=nbs, identity_of={f"recipe.{k}": v for k, v in options.items()})
            write(tmp_path / "a", made)
    titles = [panel.title for panel in answered(tmp_path / "a").panels]
    assert titles == ["resnet8 on digits, optimizer adamw", "resnet8 on digits, optimizer sgd"]
    assert [heading(f"recipe.{key}") for key in ("eps", "schedule.name")] == ["optimizer eps", "schedule"]
    # Swept for one of them, it tells panels apart.
    write(tmp_path / "a", make_record(identity_of={"recipe.momentum": 0.5}))
    titles = [panel.title for panel in answered(tmp_path / "a").panels]
    assert len(titles) == 3
    assert "resnet8 on digits, momentum 0.5, optimizer sgd" in titles


def test_a_run_that_diverges_on_one_side_is_counted_and_not_left_out(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(3):
        run(a, seed=seed, error=10.0 + seed, step_ms=10.0)
        run(b, seed=seed, error=10.0 + seed, status="diverged" if seed else "completed")
        run(a, seed=seed, nbs=2, error=20.0, status="diverged")
        run(b, seed=seed, nbs=2, error=20.0, status="diverged")
    run(a, seed=0, nbs=4)
    run(b, seed=0, nbs=4, error=15.0)
    found = answered(a, b)
    sides = {found.cells[side.cell].nbs: side for side in found.sides}
    assert (sides[64].outcome, sides[64].difference) == ("more diverged", None)
    assert sides[64].note == "diverged: 0 of 3 left, 2 of 3 right"
    assert (sides[64].speed_outcome, sides[2].outcome) == ("not measured", "not measured")
    assert sides[4].outcome == "one pair"


def test_a_norm_that_mostly_diverges_has_no_time_to_a_target(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path, (9.0,), seed=seed, error=9.0, status="diverged" if seed else "completed")
        run(tmp_path, (9.0,), seed=seed, error=9.0, norm="gn", nbs=None)
    times = {answered(tmp_path).cells[time.cell].norm: time for time in answered(tmp_path, target=10.0).times}
    assert (times["bn"].reached, times["bn"].runs, times["bn"].seconds) == (1, 3, None)
    assert (times["gn"].reached, times["gn"].runs) == (3, 3) and times["gn"].seconds is not None


def test_the_default_target_is_one_that_half_of_the_cells_reach(tmp_path: Path) -> None:
    for nbs, error in ((2, 0.04), (4, 0.44), (8, 0.44)):
        run(tmp_path, (error,), nbs=nbs, error=error)
    found = answered(tmp_path)
    assert {time.target for time in found.times} == {0.5}
    assert all(time.reached for time in found.times)


@pytest.mark.parametrize(
    "text", ["step,val_error,train_seconds\n1,2,3\n", HEAD + "0,0,0,0,0,0,9,1,1,1\n", HEAD + "0,5,0,0,0,0,9,inf,1,1\n",
             HEAD + ",5,0,0,0,0,9,1,1,1\n", HEAD, "x" * 200_000],
    ids=["no epochs", "no step", "infinite", "an empty epoch", "no rows", "one long field"],
)  # fmt: skip
def test_an_odd_file_of_evaluations_costs_its_curve_and_nothing_else(tmp_path: Path, text: str) -> None:
    run(tmp_path, (9.0,))
    next(tmp_path.rglob(EPOCHS)).write_text(text)
    found = answered(tmp_path)
    assert (found.curves, found.times) == ((), ())
    assert len(found.cells) == 1


def test_two_data_sets_of_one_title_stay_apart(tmp_path: Path) -> None:
    for data, more in (("cifar10", 0.0), ("cifar100", 30.0)):
        for norm, nbs, error in (("bn", 64, 10.0), ("gn", None, 11.0)):
            for seed in range(3):
                made = run(
                    tmp_path / "x", data=data, norm=norm, nbs=nbs, seed=seed, error=error + more + seed
                )
                titled = dataclasses.replace(made, config=made.config | {"data": {"title": "mine"}})
                write(tmp_path / "y", titled)
    found = answered(tmp_path / "y")
    assert [panel.title for panel in found.panels] == [
        "resnet8 on mine (cifar10)",
        "resnet8 on mine (cifar100)",
    ]
    assert {
        round(c.difference.mean, 9) for panel in found.panels for c in panel.contrasts if c.difference
    } <= {1.0}


def test_a_models_own_settings_keep_it_from_no_comparison_over_models(tmp_path: Path) -> None:
    for model, gone in (("resnet8", False), ("cifar_vgg11", True)):
        for norm, nbs, error in (("bn", 64, 10.0), ("gn", None, 11.0)):
            for seed in range(3):
                made = make_record(
                    model=model,
                    norm=norm,
                    nbs=nbs,
                    seed=seed,
                    error=error + seed + 0.1 * seed * (norm == "gn"),
                )
                if gone:
                    made.identity["model"] = {"name": model}
                write(tmp_path, made)
    (together,) = answered(tmp_path).overall
    assert together.title == "resnet8 and cifar_vgg11 on digits, together"


def test_hours_that_no_run_tells_are_not_none_at_all(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(make_record(status="oom"), timings={}))
    write(tmp_path, make_record(nbs=2))
    found = answered(tmp_path)
    assert {cell.nbs: cell.gpu_hours is None for cell in found.cells.values()} == {64: True, 2: False}
