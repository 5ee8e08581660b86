"""An estimate is the median of what earlier runs took, or none."""

from __future__ import annotations

import dataclasses
import functools
import statistics

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.records import Record
from bnbench.sweep.estimate import NEWEST, Device, Estimate, estimate
from tests.records_factory import record_of


@functools.cache
def run(*words: str) -> RunConfig:
    (job,) = compose_jobs(words)
    return job


def one(cell: RunConfig, *records: Record) -> Estimate | None:
    return estimate([cell], records).cells[0]


def test_a_cell_takes_the_median_of_what_its_runs_took():
    seconds = (30.0, 11.0, 17.0)
    records = [
        record_of(run(f"seed={seed}"), fit=fit, setup=2.0, measure=1.0) for seed, fit in enumerate(seconds)
    ]
    assert one(run("seed=7"), *records) == Estimate(statistics.median(seconds) + 3.0, "3 runs of this cell")


def test_without_a_record_that_fits_there_is_no_number():
    others = (
        ("model=resnet20",),
        ("data.max_train=512",),
        ("trainer.devices=1",),
        ("global_batch=128",),
        ("trainer.precision=bf16",),
        ("trainer.channels_last=true",),
        ("schedule=range", "schedule.lr_end=5", "optim.warmup_epochs=0"),
    )
    assert one(run()) is None
    assert estimate([run()], [record_of(run(*words)) for words in others]).cells == [None]


@pytest.mark.parametrize("status", ["diverged", "failed", "oom", "timeout", "preempted"])
def test_a_run_that_did_not_complete_says_nothing_of_time(status):
    assert one(run(), record_of(run(), status=status)) is None


@pytest.mark.parametrize("broken", [None, "12", float("nan"), float("inf"), -1.0, True])
def test_a_time_that_is_none_is_not_taken_for_one(broken):
    record = dataclasses.replace(record_of(run()), timings={"fit_seconds": broken})
    assert one(run(), record) is None


def test_an_incomplete_identity_is_passed_over():
    whole = record_of(run())
    for key in ("norm", "recipe", "nbs", "per_device_batch", "model", "data"):
        identity = {name: value for name, value in whole.identity.items() if name != key}
        found = one(run(), dataclasses.replace(whole, identity=identity))
        assert found is None or key == "nbs"  # null there is a norm without one


def test_the_newest_count_most():
    old = [record_of(run(f"seed={seed}"), fit=100.0, day=1) for seed in range(20)]
    new = [record_of(run(f"seed={seed}"), fit=10.0, day=2) for seed in range(NEWEST)]
    assert one(run(), *old, *new) == one(run(), *new, *old) == Estimate(10.0, f"{NEWEST} runs of this cell")


def test_the_nearest_stands_in_for_a_cell_that_never_ran():
    records = [
        record_of(run("norm=gn"), fit=1.0),
        record_of(run("norm.batch_size=2"), fit=2.0),
        record_of(run("norm.batch_size=16"), fit=16.0),
        record_of(run("norm.batch_size=64"), fit=64.0),  # shares statistics over ranks
    ]
    assert one(run("norm.batch_size=8"), *records) == Estimate(16.0, "like bn@16")
    assert one(run("norm.batch_size=32"), *records) == Estimate(16.0, "like bn@16")
    assert one(run("norm=syncbn"), *records) == Estimate(64.0, "1 run of this cell")
    assert one(run("norm=brn", "norm.batch_size=64"), *records) == Estimate(64.0, "like bn@64")
    assert one(run("norm=ln"), *records) == Estimate(1.0, "like gn")


def test_other_epochs_scale_the_training_and_nothing_else():
    records = [record_of(run(f"seed={seed}"), fit=30.0, setup=4.0, measure=1.0) for seed in (0, 1)]
    assert one(run("epochs=9"), *records) == Estimate(95.0, "like bn@32, 3 epochs")


def test_what_measures_more_is_not_this_cells_time():
    record = record_of(run("measure=none"))
    assert one(run("measure=none"), record) == Estimate(10.0, "1 run of this cell")
    assert one(run(), record) == Estimate(10.0, "like bn@32")
    assert one(run("evals_per_epoch=3"), record_of(run())) == Estimate(10.0, "like bn@32")


def test_the_records_of_one_device_count():
    gpu = ("cuda", "a made-up GPU")
    cells = [run(), run("norm=gn")]
    records = [
        record_of(cells[0], fit=5.0, day=2, device=gpu),
        record_of(cells[0], fit=50.0, day=1),
        record_of(cells[1], fit=40.0, day=1),
    ]
    found = estimate(cells, records)
    assert found.device == Device(*gpu)
    assert found.cells == [Estimate(5.0, "1 run of this cell"), Estimate(5.0, "like bn@32")]


def test_a_run_on_cpu_is_not_estimated_by_a_gpu_nor_the_reverse():
    cpu, gpu = record_of(run(), fit=50.0), record_of(run(), fit=5.0, day=2, device=("cuda", "a made-up GPU"))
    assert one(run("trainer.accelerator=cpu"), cpu, gpu) == Estimate(50.0, "1 run of this cell")
    assert one(run("trainer.accelerator=cpu"), gpu) is None
    assert one(run("trainer.accelerator=gpu"), cpu) is None
