"""The best learning rate of a grid, and the largest stable one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bnbench.analysis.collect import collect
from bnbench.analysis.lr_range import stable_rates
from bnbench.analysis.tuning import best_rate, tuned, unequal
from bnbench.records import Record
from bnbench.report import build
from tests.records_factory import make_record, write


def grid(errors: dict[float, list[float | None]], **settings: Any) -> list[Record]:
    return [
        make_record(
            lr=lr, seed=seed, error=error, status="diverged" if error is None else "completed", **settings
        )
        for lr, values in errors.items()
        for seed, error in enumerate(values)
    ]


def test_the_best_mean_wins_and_an_edge_is_flagged() -> None:
    middle = best_rate({0.1: {0: 12.0, 1: 12.0}, 0.2: {0: 10.0, 1: 11.0}, 0.4: {0: 9.0, 1: 14.0}})
    assert (middle.rate, middle.mean, middle.edge, middle.lost) == (0.2, 10.5, None, 0)
    assert best_rate({0.1: {0: 3.0}, 0.2: {0: 4.0}}).edge == "lower"
    assert best_rate({0.1: {0: 5.0}, 0.2: {0: 4.0}}).edge == "upper"
    assert best_rate({0.1: {0: 5.0}, 0.2: {0: 4.0}}, "higher").edge == "lower"
    assert best_rate({0.2: {0: 4.0}}).edge is None  # nothing was tuned
    assert best_rate({0.2: {0: 4.0}, 0.1: {0: 4.0}, 0.4: {0: 4.0}}).rate == 0.1


def test_a_rate_at_which_a_seed_diverged_cannot_win() -> None:
    choice = best_rate({0.1: {0: 12.0, 1: 12.0}, 0.2: {0: 5.0, 1: None}, 0.4: {0: None, 1: None}})
    assert (choice.rate, choice.lost, choice.tried) == (0.1, 2, (0.1, 0.2, 0.4))
    nothing = best_rate({0.1: {0: None}, 0.2: {0: None}})
    assert (nothing.mean, nothing.lost) == (None, 2)


def test_a_rate_is_not_chosen_for_its_seeds() -> None:
    """Two more seeds at a bad rate, as of a sweep that was cut off: both are judged by those that they share."""
    choice = best_rate({0.1: {0: 10.0, 1: 11.0, 2: 9.0}, 0.2: dict.fromkeys(range(5), 30.0)})
    assert (choice.rate, choice.mean, choice.lost) == (0.1, 10.0, 0)
    apart = best_rate({0.1: {0: 10.0}, 0.2: {1: 30.0}})  # no seed in common: by what there is
    assert apart.rate == 0.1


def test_a_run_that_was_cut_off_says_nothing_of_its_rate(tmp_path: Path) -> None:
    records = grid({0.1: [10, 11, 12], 0.2: [8, 9, 7]}, nbs=2)
    records[-1].status = "oom"
    for record in records:
        write(tmp_path, record)
    (cell,) = tuned(collect([tmp_path]).runs)
    assert (cell.choice.rate, cell.choice.mean, cell.choice.lost) == (0.2, 8.5, 0)


def test_each_cell_of_a_sweep_has_its_best_rate(tmp_path: Path) -> None:
    records = grid({0.1: [10, 11], 0.2: [8, 9], 0.4: [None, 7]}, nbs=2)
    records += grid({0.1: [20, 20], 0.2: [30, 30], 0.4: [40, 40]}, norm="gn", nbs=None)
    records += [make_record(norm="in", nbs=None)]  # at one rate: not tuned
    for record in records:
        write(tmp_path, record)
    bn, gn = tuned(collect([tmp_path]).runs)
    assert (bn.norm, bn.nbs, bn.choice.rate, bn.choice.mean) == ("bn", 2, 0.2, 8.5)
    assert (bn.choice.edge, bn.choice.lost) == (None, 1)
    assert (gn.norm, gn.nbs, gn.choice.rate, gn.choice.edge) == ("gn", None, 0.1, "lower")
    assert not unequal([bn, gn])
    page = build([tmp_path], tmp_path / "report").page_md.read_text()
    assert "| resnet8 | bn | 2 | 0.2 | 8.5 | 3: 0.1, 0.2, 0.4 |  |" in page
    assert "| resnet8 | gn | – | 0.1 | 20.0 | 3: 0.1, 0.2, 0.4 | lower |" in page
    assert "did not try the same learning rates" not in page


def test_unequal_grids_are_said_to_be(tmp_path: Path) -> None:
    for record in grid({0.1: [10], 0.2: [8]}) + grid({0.1: [10], 0.2: [8], 0.4: [9]}, norm="gn", nbs=None):
        write(tmp_path, record)
    assert unequal(tuned(collect([tmp_path]).runs))
    assert "did not try the same learning rates" in build([tmp_path], tmp_path / "report").page_md.read_text()


def test_a_sweep_at_one_rate_has_no_table_of_rates(tmp_path: Path) -> None:
    write(tmp_path, make_record())
    page = build([tmp_path], tmp_path / "report").page_md.read_text()
    assert "Tuned" not in page and "stable learning" not in page and "## Claims" not in page


def test_stable_rates_by_hand(tmp_path: Path) -> None:
    # 1, 2, 4: geometric mean 2, and a 95% interval of ln 2 x 4.302653 / sqrt(3) on each side on a log scale.
    schedule = {"recipe.schedule": {"name": "range", "lr_end": 4.0}}
    records = [
        make_record(
            seed=s, metrics={"largest_stable_lr": r, "lr_range_exhausted": r == 4.0}, identity_of=schedule
        )
        for s, r in enumerate((1.0, 2.0, 4.0, None))
    ]
    (cell,) = stable_rates([*records, make_record()])
    assert cell.mean == pytest.approx(2)
    assert cell.high == pytest.approx(2 * 2 ** (4.302653 / 3**0.5), rel=1e-6)
    assert (cell.seeds, cell.none, cell.at_end) == (4, 1, 1)
    for record in records:
        write(tmp_path, record)
    page = build([tmp_path], tmp_path / "report").page_md.read_text()
    assert "1 without a stable rate; 1 stable to the end of the range: raise schedule.lr_end" in page
