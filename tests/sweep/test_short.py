"""What a probe tells of a whole run: arithmetic that gives the probe itself back, and grows as the run does."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.sweep.short import (
    SHORT_EPOCHS,
    Probe,
    ProbeError,
    Sizes,
    Timed,
    evaluated_images,
    measured_images,
    shortened,
)
from tests.records_factory import record_of

CUT, WHOLE = Sizes(640, 100, 100), Sizes(64_000, 1000, 1000)


@functools.cache
def run(*words: str) -> RunConfig:
    (job,) = compose_jobs(words)
    return job


def timed(config: RunConfig, **changed: float) -> Timed:
    probe = shortened(config, "x", 10, 100)
    seconds = {"setup": 2.0, "fixed": 3.0, "step": 0.5, "evaluation": 1.0, "measure": 4.0} | changed
    return Timed(probe, record_of(config), cut=CUT, whole=WHOLE, **seconds)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_extended_by_nothing_a_probe_is_itself(norm):
    found = timed(run(f"norm={norm}"))
    assert found.as_long(found.probe, 10, CUT) == {
        "setup_seconds": 2.0,
        "fit_seconds": 3.0 + SHORT_EPOCHS * (10 * 0.5 + 1.0),
        "measure_seconds": 4.0,
    }


def test_steps_evaluations_and_measures_grow_and_nothing_else():
    found = timed(run("norm=gn"))
    whole = found.as_long(run("norm=gn", "epochs=7", "evals_per_epoch=2"), 1000, WHOLE)
    # Ten times the images to evaluate on; of GN's measures those on training images, as many, are left.
    assert whole["setup_seconds"] == 2.0
    assert whole["fit_seconds"] == 3.0 + 7 * (1000 * 0.5 + 2 * 10 * 1.0)
    assert whole["measure_seconds"] == 40.0


def test_a_run_that_measures_nothing_has_no_measures():
    config = run("measure=none")
    assert measured_images(config, WHOLE) == 0
    assert timed(config, measure=0.25).as_long(config, 1000, WHOLE)["measure_seconds"] == 0.25


def test_statistics_anew_before_each_evaluation_are_part_of_it():
    plain, precise = run(), run("norm.statistics=precise", "measure.precise_steps=8")
    assert evaluated_images(plain, WHOLE) == 1000
    assert evaluated_images(precise, WHOLE) == 1000 + 8 * precise.global_batch
    assert evaluated_images(precise, Sizes(64 * 3, 1000, 1000)) == 1000 + 3 * 64  # at most an epoch


def test_a_probe_keeps_what_a_step_costs_and_drops_what_it_leaves():
    config = run(
        "norm=brn", "recipe.accumulate=2", "recipe.ema=0.9", "trainer.channels_last=true", "data.augment=crop",
        "target_error=5", "optim.warmup_epochs=1", "schedule=step", "trainer.time_limit_minutes=1",
    )  # fmt: skip
    probe = shortened(config, "folder", 10, 100)
    for key in ("model", "norm", "data", "recipe", "measure", "global_batch", "seed"):
        assert getattr(probe, key) == getattr(config, key)
    assert probe.trainer.execution() == config.trainer.execution()
    assert (probe.nbs, probe.span, probe.per_device_batch) == (
        config.nbs,
        config.span,
        config.per_device_batch,
    )
    assert (probe.logger.name, probe.dir, probe.trainer.save_weights) == ("none", "folder", False)
    assert probe.trainer.checkpoint_minutes is probe.trainer.time_limit_minutes is None


@pytest.mark.parametrize(
    "words",
    [
        ("schedule=range", "schedule.lr_end=5", "optim.warmup_epochs=0"),
        ("optim=adamw", "optim.lr=0.001"),
        ("optim=lars", "optim.lr=1", "optim.warmup_epochs=0"),
        ("evals_per_epoch=4",),
        ("norm=frozen", "norm.after=0.5"),
        ("norm=vbn", "norm.reference_size=300"),
        ("data.val_images=200", "measure.test=true"),
    ],
    ids=" ".join,
)
def test_every_kind_of_run_has_one(words):
    probe = shortened(run(*words), "folder", 4, 100)
    assert isinstance(probe, Probe)
    assert probe.epochs == SHORT_EPOCHS
    assert probe.train_images >= max(4 * 64, probe.norm.reference_size or 0)


def test_several_nodes_are_not_probed_from_one():
    config = run()
    apart = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, num_nodes=2))
    with pytest.raises(ProbeError, match="num_nodes=2"):
        shortened(apart, "folder", 4, 100)
