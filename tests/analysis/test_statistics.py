from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bnbench.analysis.collect import collect
from bnbench.analysis.panels import panels
from bnbench.analysis.statistics import cells, factors, shared
from bnbench.records import Record
from tests.records_factory import make_record, write, write_quickstart


def runs_of(root: Path, records: list[Record]) -> pl.DataFrame:
    for record in records:
        write(root, record)
    return collect([root]).runs


def seeds(errors: list[float | None], **settings: Any) -> list[Record]:
    return [
        make_record(seed=s, error=e, status="completed" if e is not None else "diverged", **settings)
        for s, e in enumerate(errors)
    ]


def test_three_seeds_by_hand(tmp_path: Path) -> None:
    # 10, 11, 13.5: mean 11.5, deviations -1.5, -0.5, 2, so sd = sqrt(6.5 / 2) = 1.802776;
    # t(0.975, 2 degrees of freedom) = 4.302653 (any table), so half = 4.302653 * 1.802776 / sqrt(3).
    (row,) = cells(runs_of(tmp_path, seeds([10.0, 11.0, 13.5]))).rows(named=True)
    half = 4.302653 * 1.802776 / 3**0.5
    assert row["mean"] == pytest.approx(11.5)
    assert row["sd"] == pytest.approx(1.802776, abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx((11.5 - half, 11.5 + half), abs=1e-5)
    assert (row["seeds"], row["runs"], row["completed"]) == (3, 3, 3)


def test_one_seed_has_no_interval_and_equal_seeds_an_empty_one(tmp_path: Path) -> None:
    table = cells(runs_of(tmp_path, [*seeds([12.0], nbs=2), *seeds([12.0, 12.0], nbs=4)]))
    one, two = table.rows(named=True)
    assert (one["seeds"], one["mean"], one["low"], one["high"], one["sd"]) == (1, 12.0, None, None, None)
    assert (two["low"], two["high"]) == (12.0, 12.0)


def test_unfinished_runs_are_counted_and_never_averaged(tmp_path: Path) -> None:
    records = [*seeds([10.0, None, 12.0], nbs=2), *seeds([None, None], nbs=4)]
    # A diverged run that did state an error must not enter the mean either.
    records[1].metrics["final_val_error"] = 90.0
    records[1].timings["images_per_s"] = 1e9
    some, none = cells(runs_of(tmp_path, records)).rows(named=True)
    assert (some["mean"], some["seeds"], some["completed"], some["diverged"]) == (11.0, 2, 2, 1)
    assert some["images_per_s"] == 2000.0
    assert (none["mean"], none["low"], none["seeds"], none["diverged"]) == (None, None, 0, 2)


def test_every_run_is_in_one_count(tmp_path: Path) -> None:
    write_quickstart(tmp_path)
    table = cells(collect([tmp_path]).runs)
    statuses = ["completed", "diverged", "oom", "timeout", "preempted", "failed"]
    assert table["runs"].sum() == 15
    assert table.select(pl.sum_horizontal(statuses)).to_series().to_list() == table["runs"].to_list()


def test_rows_come_in_the_catalogs_order(tmp_path: Path) -> None:
    records = [
        make_record(norm="zz", nbs=None),
        make_record(norm="gn", nbs=None),
        *(make_record(nbs=nbs) for nbs in (16, 2, 64)),
        make_record(model="resnet20", nbs=2),
    ]
    table = cells(runs_of(tmp_path, records))
    assert table.select("model", "norm", "nbs").rows() == [
        ("resnet8", "bn", 2),
        ("resnet8", "bn", 16),
        ("resnet8", "bn", 64),
        ("resnet8", "gn", None),
        ("resnet8", "zz", None),
        ("resnet20", "bn", 2),
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {"nbs": 4}, []),
        ({}, {"norm": "gn", "nbs": None}, []),  # num_groups, statistics: the kind of norm says it
        ({}, {"lr": 0.2}, ["recipe.lr"]),
        ({}, {"data": "cifar10"}, ["data"]),
        ({}, {"norm_settings": {"eps": 1e-3}}, ["norm.eps"]),
        ({}, {"norm_settings": {"statistics": "rank0"}}, ["norm.statistics"]),
        ({}, {"world_size": 2}, ["world_size"]),  # the batch a device follows
        ({}, {"world_size": 2, "global_batch": 128}, ["world_size"]),
        ({}, {"global_batch": 128}, ["global_batch"]),
        ({}, {"world_size": 2, "global_batch": 512}, ["world_size", "global_batch"]),
    ],
)
def test_factors_are_what_else_differs(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], expected: list[str]
) -> None:
    table = cells(runs_of(tmp_path, [make_record(**one), make_record(**other)]))
    assert factors(table) == expected
    shown = table.select("model", "norm", "nbs", *expected)
    assert shown.unique().height == table.height == 2  # no two rows look the same


def test_factor_values_are_those_of_their_cell(tmp_path: Path) -> None:
    records = [
        make_record(lr=0.2, error=20.0),
        make_record(lr=0.1, error=10.0),
        make_record(lr=0.05, error=5.0),
    ]
    table = cells(runs_of(tmp_path, records))
    assert table.select("recipe.lr", "mean").rows() == [("0.05", 5.0), ("0.1", 10.0), ("0.2", 20.0)]


def test_shared_settings_are_told_once_and_a_norms_by_its_name(tmp_path: Path) -> None:
    records = [make_record(lr=0.1), make_record(lr=0.2), make_record(norm="gn", nbs=None)]
    common = shared(runs_of(tmp_path, records))
    assert common["recipe.epochs"] == "3"
    assert common["gn: norm.num_groups"] == "8"
    assert common["bn: norm.statistics"] == "mean"
    assert not {"recipe.lr", "model.name", "nbs", "seed"} & set(common)


def test_a_setting_that_some_cells_lack_is_a_factor_and_a_line(tmp_path: Path) -> None:
    """As one that a later version added, or that stands in an identity only where it was set."""
    for seed in (0, 1):
        write(tmp_path, make_record(norm="gn", nbs=None, seed=seed))
        write(tmp_path, make_record(norm="gn", nbs=None, seed=seed, norm_settings={"own": True}))
    runs = collect([tmp_path]).runs
    table = cells(runs)
    assert factors(table) == ["norm.own"]
    assert set(table["norm.own"]) == {None, "true"}
    assert "gn: norm.own" not in shared(runs)
    assert {cell.line for panel in panels(runs, table) for cell in panel.cells} == {"gn", "gn own true"}
