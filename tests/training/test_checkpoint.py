"""A run that was left anywhere and goes on ends where the undisturbed one ends, bit by bit."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.records import EPOCHS, HEALTH, RECORD, Record, read_record
from bnbench.training.checkpoint import FOLDER, KEPT, CheckpointFolder
from bnbench.training.lock import NAME, RunLock
from tests.ranks import WarmWorld

# 8 steps of 64 in an epoch; windows of 3 steps end at 3 and 6.
SMALL = [
    "data.max_train=512", "data.max_test=64", "epochs=3", "optim.warmup_epochs=0", "logger=none", "model.width=4",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=3", "trainer.checkpoint_minutes=null",
    "measure.health_every=2", "measure.precise_steps=2",
]  # fmt: skip


def _config(folder: Path, *words: str) -> RunConfig:
    (config,) = compose_jobs([*SMALL, *words], multirun=False)
    return dataclasses.replace(config, dir=str(folder))


class _Stop:
    """Asks to stop at the n-th look, on one rank."""

    def __init__(self, look: int, here: bool) -> None:
        self.left, self.here = look, here

    def __call__(self) -> bool:
        self.left -= 1
        return self.here and self.left < 0


def _train(world: Any, config: RunConfig, looks: list[int]) -> str:
    """Train, left once for each number of `looks` at whether to stop; the last attempt is undisturbed."""
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache

    for look in looks:
        stop = _Stop(look, world.place.rank == world.place.size - 1)  # the last rank is asked: all stop
        with pytest.raises(PreemptedError, match="goes on from its checkpoint"):
            train_run(config, world, DataCache(), lambda _: None, stop)
        torch.manual_seed(123 + look)  # another process has other random numbers
    return train_run(config, world, DataCache(), lambda _: None)


def _outcome(config: RunConfig) -> tuple[Record, list[dict[str, str]], str]:
    record = read_record(config.folder / RECORD)
    with (config.folder / EPOCHS).open() as file:
        rows = list(csv.DictReader(file))
    health = config.folder / HEALTH
    return record, rows, health.read_text() if health.exists() else ""


TIMES = ("train_seconds", "val_seconds", "images_per_s")


def _assert_same(whole: RunConfig, left: RunConfig) -> Record:
    one, other = _outcome(whole), _outcome(left)
    assert one[0].metrics["weights_sha256"] is not None
    assert one[0].metrics == other[0].metrics
    assert one[0].health == other[0].health
    for a, b in zip(one[1], other[1], strict=True):
        assert {k: v for k, v in a.items() if k not in TIMES} == {
            k: v for k, v in b.items() if k not in TIMES
        }
    assert one[2] == other[2]
    assert not (left.folder / FOLDER).exists(), "a finished run needs none"
    return other[0]


@pytest.fixture(scope="module")
def worlds():
    with WarmWorld(1) as one, WarmWorld(2) as two:
        yield {1: one, 2: two}


CASES = {
    "bn": ["norm=bn", "norm.batch_size=8"],
    "syncbn": ["norm=syncbn"],
    "brn": ["norm=brn", "norm.batch_size=8", "norm.warmup=0.2"],
    "frozen": ["norm=frozen", "norm.after=0.4"],
    "vbn": ["norm=vbn", "norm.reference_size=16"],
    "precise": ["norm=frozen", "norm.after=0.4", "norm.statistics=precise"],
    "recipe": ["norm=bn", "recipe.ema=0.9", "recipe.accumulate=2", "norm.batch_size=8", "model.dropout=0.3",
               "recipe.clip_norm=1.0"],
    "adamw": ["norm=gn", "optim=adamw", "optim.lr=0.001", "model.dropout=0.3"],
    "landscape": ["norm=bn", "measure.landscape=true", "measure.landscape_every=3", "evals_per_epoch=2"],
    "evaluations": ["norm=bn", "evals_per_epoch=4", "trainer.log_every=2"],
    "fp64": ["norm=gn", "trainer.precision=fp64"],
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_run_left_anywhere_ends_bit_identical(tmp_path, worlds, case, size):
    words = [*CASES[case], f"trainer.devices={size}"]
    whole, left = _config(tmp_path / "whole", *words), _config(tmp_path / "left", *words)
    assert set(worlds[size].call(_train, whole, [])) == {"completed"}
    # Where the looks are at 3, 6, 8, 11, 14 and 16: within an epoch, at its end, within the next, at its end.
    assert set(worlds[size].call(_train, left, [1, 0, 1, 0])) == {"completed"}
    record = _assert_same(whole, left)
    assert len(record.provenance["resumed"]) == 4
    steps = [attempt["step"] for attempt in record.provenance["resumed"]]
    assert steps == sorted(set(steps))


def _made(world: Any, config: RunConfig, look: int) -> list[str]:
    """Leaves a run; the names of the checkpoints that it made."""
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache

    with pytest.raises(PreemptedError):
        train_run(config, world, DataCache(), lambda _: None, _Stop(look, True))
    return sorted((path.name for path in (config.folder / FOLDER).iterdir()), reverse=True)


def test_a_broken_checkpoint_is_passed_over_and_told(tmp_path, worlds):
    words = ["norm=bn", "trainer.devices=1", "trainer.checkpoint_minutes=0"]
    whole, left = _config(tmp_path / "whole", *words), _config(tmp_path / "left", *words)
    worlds[1].call(_train, whole, [])
    (names,) = worlds[1].call(_made, left, 4)
    assert len(names) == KEPT
    newest = left.folder / FOLDER / names[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    worlds[1].call(_train, left, [])
    record = _assert_same(whole, left)
    assert record.provenance["checkpoint_remarks"] == [
        f"{names[0]} is passed over: its bytes are not those that were written"
    ]
    assert [f"step-{attempt['step']:08d}" for attempt in record.provenance["resumed"]] == [
        names[1].split(".")[0]
    ]


def test_where_no_checkpoint_can_be_written_training_goes_on(tmp_path, worlds):
    config = _config(tmp_path / "blocked", "norm=bn", "trainer.devices=2", "trainer.checkpoint_minutes=0")
    config.folder.mkdir(parents=True)
    (config.folder / FOLDER).write_text("in the way")
    assert set(worlds[2].call(_train, config, [])) == {"completed"}


def test_a_run_that_diverges_leaves_no_checkpoint_to_go_on_from(tmp_path, worlds):
    words = [
        "norm=bn",
        "trainer.devices=1",
        "trainer.checkpoint_minutes=0",
        "optim.lr=1e30",
        "trainer.log_every=1",
    ]
    config = _config(tmp_path, *words)
    assert set(worlds[1].call(_train, config, [])) == {"diverged"}
    assert read_record(config.folder / RECORD).status == "diverged"
    assert not (config.folder / FOLDER).exists()


def test_the_newest_whole_file_counts_and_few_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, "mine")
    assert folder.newest() == (None, [])
    for step in (2, 10, 9):
        folder.save_checkpoint({"step": torch.tensor(step)}, folder.path(step))
    path, remarks = folder.newest()
    assert (folder.load_checkpoint(path)["step"].item(), remarks) == (10, [])
    assert sorted(path.name[:18] for path in folder.folder.iterdir()) == [
        "step-00000009.mine",
        "step-00000010.mine",
    ]
    for broken in folder.folder.iterdir():
        broken.write_bytes(b"")
    other = CheckpointFolder(tmp_path, "other")
    other.save_checkpoint({}, other.path(99))
    found, remarks = folder.newest()
    assert found is None and len(remarks) == 3
    assert [path.name[:19] for path in folder.folder.iterdir()] == ["step-00000099.other"], (
        "broken ones are removed"
    )
    folder.save_checkpoint({"step": torch.tensor(1)}, folder.path(1))
    assert folder.newest()[0].name.startswith("step-00000001.mine."), "in spite of an other's later step"
    folder.clear()
    assert folder.newest() == (None, [])


def test_other_settings_start_anew_and_say_so(tmp_path, worlds):
    words = ["norm=bn", "trainer.devices=1"]
    config = _config(tmp_path, *words)
    (names,) = worlds[1].call(_made, config, 1)
    looking = _config(tmp_path, *words, "measure.landscape=true")
    assert looking.folder == config.folder
    assert set(worlds[1].call(_train, looking, [])) == {"completed"}
    record = read_record(config.folder / RECORD)
    assert record.provenance["resumed"] == []
    (remark,) = record.provenance["checkpoint_remarks"]
    assert remark.startswith(f"{names[0]} is passed over: other code, hardware or settings (measure,")


def test_one_process_at_a_time_trains_a_run(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    with pytest.raises(ValueError, match="is being trained by another process"):
        second.take(0.3)
    first.release()
    second.take(0.3)
    first.release()
    assert second.path.exists()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_finished_is_not_trained_again(tmp_path, worlds):
    config = _config(tmp_path, "norm=bn", "trainer.devices=2")
    assert set(worlds[2].call(_train, config, [])) == {"completed"}
    before = (config.folder / RECORD).read_bytes()
    assert set(worlds[2].call(_train, config, [])) == {"completed"}
    assert (config.folder / RECORD).read_bytes() == before
    assert not (config.folder / NAME).exists()
