"""What a sweep needs of the disk, held against what runs leave."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.sweep.disk import CHECKPOINTS, SMALL_FILES, checkpoint_bytes, disk_needs, health_bytes
from bnbench.sweep.estimate import Estimate, estimate
from tests.end_to_end.commands import NO_LOGGER, TINY, records, train

PARAMS = 1_000_000
TOLD = Estimate(1.0, "made up", params=PARAMS)


@functools.cache
def run(*words: str) -> RunConfig:
    (job,) = compose_jobs(words)
    return job


@pytest.mark.parametrize(
    ("words", "floats"),
    [
        ((), 2),
        (("optim.momentum=0", "optim.nesterov=false"), 1),
        (("optim=adamw", "optim.lr=0.001"), 3),
        (("recipe.ema=0.9",), 3),
        (("trainer.precision=fp64",), 4),
        (("trainer.precision=bf16",), 2),  # autocast: weights and momentum stay fp32
    ],
)
def test_a_checkpoint_holds_weights_the_optimizers_state_and_the_average(words, floats):
    assert checkpoint_bytes(run(*words), TOLD) == floats * 4 * PARAMS


def test_every_run_leaves_its_weights_and_the_largest_worlds_checkpoints_are_there_at_once():
    small, large = run(), run("optim=adamw", "optim.lr=0.001")
    found = disk_needs([(small, TOLD), (large, TOLD), (large, None), (small, TOLD)], worlds=2)
    assert found.kept == 3 * (4 * PARAMS + SMALL_FILES)
    assert found.checkpoints == CHECKPOINTS * (12 + 8) * PARAMS
    assert found.unknown == 1
    without = disk_needs([(run("trainer.save_weights=false"), TOLD)], worlds=1)
    assert without.kept == SMALL_FILES


def test_health_grows_with_looks_and_layers_and_is_in_each_checkpoint_too():
    """ImageNet in batches of 32, for 90 epochs: more than the weights of a small network."""
    told = dataclasses.replace(TOLD, layers=53, train_images=1_281_167)
    often, never = run("epochs=90", "global_batch=32"), run("epochs=90", "measure.health_every=null")
    assert health_bytes(never, told) == health_bytes(often, TOLD) == 0
    looks = 90 * (1_281_167 // 32) // 100
    assert looks * 53 * 3 * 30 < health_bytes(often, told) < looks * 63 * 3 * 60
    grown = disk_needs([(often, told)], 1), disk_needs([(often, TOLD)], 1)
    assert grown[0].kept - grown[1].kept == health_bytes(often, told)
    assert grown[0].checkpoints - grown[1].checkpoints == CHECKPOINTS * health_bytes(often, told)


def test_a_folder_that_is_to_be_made_has_the_free_space_of_the_one_above(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "bnbench.sweep.disk.shutil.disk_usage",
        lambda folder: asked.append(Path(folder).resolve()) or type("", (), {"free": 10 * PARAMS})(),
    )
    found = disk_needs([(run(), TOLD)], worlds=1)
    assert asked == [tmp_path.resolve()]
    assert (found.free, found.is_short) == (10 * PARAMS, True)  # 4 of weights, 24 of checkpoints
    assert not disk_needs([(run("model.width=4"), dataclasses.replace(TOLD, params=1))], worlds=1).is_short


def test_health_is_no_more_than_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (*TINY, *NO_LOGGER, "trainer.devices=2", "measure.health_every=1", "epochs=4")
    assert train(*words) == 0
    (told,) = estimate([run(*words)], records(tmp_path / "runs")).cells
    size = sum(file.stat().st_size for file in tmp_path.rglob("health.csv"))
    assert told is not None
    assert size < health_bytes(run(*words), told) < 4 * size


@pytest.mark.parametrize("words", [("optim.lr=0.1",), ("optim=adamw", "optim.lr=0.001", "recipe.ema=0.9")])
def test_it_is_what_runs_leave(words, tmp_path, monkeypatch):
    """A network of resnet20's size: what a checkpoint holds beside weights is some 50 kB."""
    monkeypatch.chdir(tmp_path)
    common = (*TINY, *NO_LOGGER, *words, "model=resnet20", "trainer.devices=1", "trainer.log_every=1")
    stopped = (*common, "name=stopped", "trainer.time_limit_minutes=0.0001")
    assert train(*stopped) == 1
    assert train(*common, "name=whole") == 0
    (record,) = records(tmp_path / "runs" / "whole")
    config = run(*common, "name=whole")
    params = record.metrics["params"]
    (checkpoint,) = (tmp_path / "runs" / "stopped").rglob("*.ckpt")
    told = Estimate(1.0, "this run", params=params)
    expected = checkpoint_bytes(config, told)
    assert expected < checkpoint.stat().st_size < 1.1 * expected
    left = sum(file.stat().st_size for file in config.folder.rglob("*") if file.is_file())
    kept = disk_needs([(config, told)], worlds=1).kept
    assert 4 * params < left <= kept
