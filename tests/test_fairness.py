"""What differs between cells besides what is swept: told before a sweep, and the same in its report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bnbench.compose import compose_jobs
from bnbench.fairness import Fairness, fairness
from bnbench.records import Record, cell_of, flatten
from bnbench.report import build
from bnbench.report import fairness as reported
from bnbench.sweep.fairness import MOST_LINES, planned, told
from bnbench.sweep.plan import plan_single, plan_sweep
from bnbench.train import _announce
from tests.records_factory import make_record, write


def of(*words: str) -> Fairness:
    return planned(plan_sweep(compose_jobs(words, True)).runs)


def besides(found: Fairness) -> dict[str, dict[str, tuple[str, ...]]]:
    return {difference.key: dict(difference.values) for difference in found.besides}


def test_an_equal_sweep_is_one_line() -> None:
    runs = plan_sweep(compose_jobs(["norm=bn,gn", "norm.batch_size=2,64"], True)).runs
    assert told(runs) == ["fairness: no factor differs besides the swept NBS, norm"]


def test_seeds_alone_say_nothing() -> None:
    assert told(compose_jobs(["seed=0,1"], True)) == []


def test_defaults_that_norms_bring_are_named_with_their_owners() -> None:
    found = besides(of("norm=bn,gn,ln,frn,brn,none"))
    assert found == {
        "norm.eps": {"1e-06": ("frn",), "1e-05": ("others",)},
        "norm.momentum": {"0.1": ("bn",), "0.01": ("brn",)},
        "norm.init": {"fixup": ("none",), "none": ("others",)},
    }


def test_what_follows_from_a_batch_is_named_with_it() -> None:
    found = of("global_batch=32,64", "optim.lr_rule=linear", "optim.base_batch=64")
    assert found.swept == ("global_batch",)
    assert besides(found) == {
        "NBS": {"16": ("global_batch 32",), "32": ("global_batch 64",)},
        "per_device_batch": {"16": ("global_batch 32",), "32": ("global_batch 64",)},
        "peak LR": {"0.1": ("global_batch 32",), "0.2": ("global_batch 64",)},
        "steps": {"960": ("global_batch 32",), "480": ("global_batch 64",)},
    }


def test_a_swept_nbs_is_no_difference_though_ranks_are_swept_too() -> None:
    found = of("trainer.devices=1,2", "norm.batch_size=2,4")
    assert found.swept == ("nbs", "world_size")
    assert set(besides(found)) == {"per_device_batch"}


def test_optimizers_differ_in_their_defaults() -> None:
    found = of("optim=sgd,adamw")
    assert found.swept == ("recipe.name",)
    assert {"lr", "weight_decay", "decay_norm"} <= besides(found).keys()
    assert besides(found)["decay_norm"] == {"true": ("sgd",), "false": ("adamw",)}


def test_many_differences_are_told_in_few_lines() -> None:
    runs = compose_jobs(["optim=sgd,adamw", "norm=frn,brn,none"], True)
    runs += [dataclasses.replace(run, global_batch=32) for run in runs]
    lines = told(runs)
    assert len(planned(runs).besides) >= MOST_LINES
    assert len(lines) == MOST_LINES + 1
    assert "the report lists all" in lines[-1]
    assert all("\n" not in line for line in lines)


def test_a_sweep_says_it_before_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    _announce(plan_sweep(compose_jobs(["norm=bn,brn"], True)), True)
    count, *rest = capsys.readouterr().out.splitlines()
    assert count.startswith("2 cell(s)")
    assert rest == ["fairness: besides the swept norm these differ", "  norm.momentum: 0.1 (bn); 0.01 (brn)"]
    _announce(plan_single(compose_jobs([])[0]), False)
    assert capsys.readouterr().out == ""


# From identities


def cell(**settings: Any) -> tuple[dict[str, Any], int | None]:
    return flatten(cell_of(make_record(**settings).identity)), 1024


def test_a_setting_that_goes_with_a_norm_is_not_swept() -> None:
    """Each norm with its own learning rate: nothing says which of the two made the difference."""
    found = fairness([cell(lr=0.1), cell(norm="gn", nbs=None, lr=0.2)])
    assert found.swept == ("norm.name",)
    assert besides(found)["lr"] == {"0.1": ("bn",), "0.2": ("gn",)}
    crossed = [cell(**more, lr=lr) for lr in (0.1, 0.2) for more in ({}, {"norm": "gn", "nbs": None})]
    assert fairness(crossed).swept == ("norm.name", "recipe.lr")
    assert fairness(crossed).besides == ()
    # Swept for each, over rates of its own: no pair of cells differs in the norm alone.
    for own in ((0.2,), (0.4, 0.8)):
        uneven = fairness([*crossed[::2], *(cell(norm="gn", nbs=None, lr=lr) for lr in own)])
        assert uneven.swept == ("norm.name", "recipe.lr")
        assert "lr" not in besides(uneven)  # it is swept: not besides
        assert [each.key for each in uneven.uneven] == ["lr"]
        assert "fairness: swept over other values with one choice than with another" in uneven.lines()


@pytest.mark.parametrize("extra", [{}, {"norm_settings": {"eps": 1e-3}}])
def test_the_page_lists_what_the_records_differ_in(tmp_path: Path, extra: dict[str, Any]) -> None:
    write(tmp_path, make_record(norm="gn", nbs=None, norm_settings={"eps": 1e-5}))
    write(tmp_path, make_record(nbs=2, **extra))
    page = build([tmp_path], tmp_path / "report").page_md.read_text()
    assert "## Fairness" in page
    assert (
        "- norm.eps: 1e-05 (gn); 0.001 (bn)" in page or "- norm.eps: 0.001 (bn); 1e-05 (gn)" in page
    ) == bool(extra)
    assert ("No factor differs besides." in page) == (not extra)


@pytest.mark.parametrize(
    "words",
    [
        ["norm=bn,gn,frn", "norm.batch_size=2,64"],
        ["global_batch=32,64", "norm=bn,brn"],
        ["optim=sgd,adamw", "norm=bn,none"],
    ],
)
def test_a_report_says_what_the_sweep_said_before_it_ran(words: list[str]) -> None:
    runs = plan_sweep(compose_jobs(words, True)).runs
    records: list[Record] = []
    for run in runs:
        record = make_record()
        record.identity = run.identity()
        record.provenance["data"]["train_images"] = run.data.max_train
        records.append(record)
    assert reported.of(records) == planned(runs)


def _started(weights: str, **options: Any) -> Record:
    record = make_record(**options)
    record.provenance["start"] = {"weights_sha256": weights, "order_sha256": "0"}
    return record


def test_seeds_are_paired_where_the_hashes_agree():
    runs = [_started(f"w{seed}", norm=norm, seed=seed) for norm in ("bn", "gn") for seed in (0, 1)]
    assert "the hashes of 4 records agree" in reported.section(runs)
    apart = [*runs[:3], _started("another", norm="gn", seed=1)]
    assert "Not paired: of 2 groups of runs" in reported.section(apart)
    assert ", 1 did not start" in reported.section(apart)
    # Another model, or another batch, may start otherwise.
    other = [*runs, _started("other", model="resnet20"), _started("again", global_batch=32)]
    assert "the hashes of 4 records agree" in reported.section(other)
    # A seed of its own, or a record that does not say how it started, is paired with nothing.
    for alone in (_started("x", norm="gn", seed=7), make_record(norm="gn", nbs=None, seed=0)):
        assert "aired" not in reported.section([_started("w0", seed=0), alone])
    assert "aired" not in reported.section([make_record(), make_record(norm="gn", nbs=None)])
