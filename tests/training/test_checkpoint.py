"""A run that was left anywhere and goes on ends where the undisturbed one ends, bit by bit."""

from __future__ import annotations

import csv
import dataclasses
import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.lock import NAME, RunLock, is_taken
from bnbench.records import EPOCHS, HEALTH, RECORD, Record, read_record
from bnbench.training.checkpoint import FOLDER, KEPT, CheckpointFolder
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


ALONE = ("bn", "brn", "frozen", "recipe", "adamw")  # of the rest, one rank is a part of two


@pytest.mark.parametrize(
    ("case", "size"), [(case, size) for case in CASES for size in (1, 2) if size == 2 or case in ALONE]
)
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
    assert not is_taken(tmp_path)
    assert first.take() and is_taken(tmp_path)
    assert not second.take()
    first.release()
    assert not is_taken(tmp_path)
    assert second.take()
    first.release()
    assert is_taken(tmp_path), "releasing what one has not changes nothing"
    second.release()
    assert list(tmp_path.iterdir()) == []


def _failing(error: OSError, times: int) -> Any:
    real, left = fcntl.flock, [times]

    def flock(file: int, kind: int) -> None:
        if left[0]:
            left[0] -= 1
            raise error
        real(file, kind)

    return flock


@pytest.mark.parametrize(
    ("code", "takes", "taken"),
    [
        ("ENOLCK", True, False),
        ("EOPNOTSUPP", True, False),
        ("EACCES", False, True),
        ("EWOULDBLOCK", False, True),
    ],
)
def test_only_a_file_system_without_locks_is_taken_for_one_without_others(
    tmp_path, monkeypatch, code, takes, taken
):
    error = OSError(getattr(errno, code), code)
    (tmp_path / NAME).touch()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", _failing(error, 1))
        assert is_taken(tmp_path) == taken
        patch.setattr(fcntl, "flock", _failing(error, 1))
        assert RunLock(tmp_path).take() == takes


def test_a_lock_that_another_host_has_removed_is_taken_anew_and_a_broken_disk_is_no_lock(
    tmp_path, monkeypatch
):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", _failing(OSError(errno.ESTALE, "stale"), 2))
        assert first.take()
    assert not second.take(), "it was really taken"
    first.release()
    monkeypatch.setattr(fcntl, "flock", _failing(OSError(errno.EIO, "broken"), 1))
    with pytest.raises(OSError, match="broken"):
        second.take()


def test_another_users_lock_counts_as_taken_and_is_named(tmp_path, monkeypatch):
    def refused(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    assert is_taken(tmp_path)
    with pytest.raises(
        ValueError, match=r"\.lock cannot be opened \(Permission denied\): another user.*choose"
    ):
        RunLock(tmp_path).take()


def _busy(world: Any, config: RunConfig) -> str:
    from bnbench.training.run import BusyError, train_run
    from bnbench.training.setup import DataCache

    with pytest.raises(BusyError, match="is being trained by another process"):
        train_run(config, world, DataCache(), lambda _: None)
    return "busy"


def test_a_run_that_another_process_trains_is_left_to_it_on_every_rank(tmp_path, worlds):
    config = _config(tmp_path, "norm=bn", "trainer.devices=2")
    config.folder.mkdir(parents=True)
    (config.folder / EPOCHS).write_text("of the other process")
    lock = RunLock(config.folder)
    assert lock.take()
    assert worlds[2].call(_busy, config) == ["busy", "busy"]
    assert {path.name for path in config.folder.iterdir()} == {EPOCHS, NAME}
    lock.release()
    assert set(worlds[2].call(_train, config, [])) == {"completed"}


def test_what_another_process_finished_is_not_trained_again(tmp_path, worlds):
    config = _config(tmp_path, "norm=bn", "trainer.devices=2")
    assert set(worlds[2].call(_train, config, [])) == {"completed"}
    before = (config.folder / RECORD).read_bytes()
    assert set(worlds[2].call(_train, config, [])) == {"completed"}
    assert (config.folder / RECORD).read_bytes() == before
    assert not (config.folder / NAME).exists()


ELSEWHERE = {
    "bn": ["norm=bn", "norm.batch_size=8"],
    "syncbn": ["norm=syncbn"],
    "brn": ["norm=brn", "norm.batch_size=8", "norm.warmup=0.2"],
    "recipe": ["norm=bn", "norm.batch_size=8", "recipe.ema=0.9", "recipe.accumulate=2", "recipe.clip_norm=1.0"],
    "gn": ["norm=gn", "optim=adamw", "optim.lr=0.001"],
}  # fmt: skip


@pytest.mark.parametrize(("begun_on", "size"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_run_goes_on_on_another_number_of_ranks(tmp_path, worlds, case, begun_on, size):
    """The same images in the same groups at each step: equal but for rounding, whichever world trained it."""
    words = [*ELSEWHERE[case], "trainer.precision=fp64"]
    whole = _config(tmp_path / "whole", *words, f"trainer.devices={size}")
    begun = _config(tmp_path / "left", *words, f"trainer.devices={begun_on}")
    left = _config(tmp_path / "left", *words, f"trainer.devices={size}", f"trainer.resume_world={begun_on}")
    assert left.begun_elsewhere is not None and left.begun_elsewhere.folder == begun.folder != left.folder
    assert set(worlds[size].call(_train, whole, [])) == {"completed"}
    worlds[begun_on].call(_made, begun, 3)
    assert set(worlds[size].call(_train, left, [1])) == {"completed"}
    record = read_record(left.folder / RECORD)
    assert [attempt["world_size"] for attempt in record.provenance["resumed"]] == [begun_on, size]
    assert record.identity == read_record(whole.folder / RECORD).identity
    _assert_close(whole, left)


def _assert_close(whole: RunConfig, left: RunConfig) -> None:
    """Weights and evaluations, but for rounding in fp64."""
    one, other = (torch.load(run.folder / "weights.pt") for run in (whole, left))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-10, atol=1e-10)
    rows = [_outcome(run)[1] for run in (whole, left)]
    for a, b in zip(*rows, strict=True):
        for key in set(a) - set(TIMES):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-9)


def test_a_run_left_on_four_ranks_ends_there_to_rounding(tmp_path):
    """From three ranks on gloo's sums depend on DDP's buckets, which an attempt forms anew."""
    words = ["norm=syncbn", "trainer.precision=fp64", "trainer.devices=4"]
    whole, left = _config(tmp_path / "whole", *words), _config(tmp_path / "left", *words)
    with WarmWorld(4) as four:
        assert set(four.call(_train, whole, [])) == {"completed"}
        assert set(four.call(_train, left, [1, 0, 1])) == {"completed"}
    assert len(read_record(left.folder / RECORD).provenance["resumed"]) == 3
    _assert_close(whole, left)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["trainer.devices=1"], "there NBS was 32, here it is 64.*set norm.batch_size=32"),
        (["trainer.devices=1", "norm=ghost", "norm.batch_size=32"], "could not have begun"),
        (
            ["trainer.devices=4", "trainer.resume_world=3", "norm.batch_size=4"],
            "not divisible by the 3 ranks",
        ),
    ],
)
def test_what_would_be_another_training_is_refused_with_the_reason(tmp_path, words, problem):
    with pytest.raises(ValueError, match=problem):
        _config(tmp_path, "trainer.resume_world=2", *words)


def test_without_a_checkpoint_there_it_begins_anew_and_says_so(tmp_path, worlds):
    words = ["norm=bn", "norm.batch_size=8", "trainer.devices=1", "trainer.resume_world=2"]
    config = _config(tmp_path, *words)
    worlds[1].call(_train, config, [])
    record = read_record(config.folder / RECORD)
    assert record.provenance["resumed"] == []
    (remark,) = record.provenance["checkpoint_remarks"]
    assert "trainer.resume_world=2: no checkpoint in" in remark and "begins anew" in remark


def test_a_loss_above_its_bound_is_divergence(tmp_path, worlds):
    words = ["norm=bn", "trainer.devices=1"]
    bounded = _config(tmp_path, *words, "recipe.max_loss=0.5")
    assert worlds[1].call(_train, bounded, []) == ["diverged"]
    record = read_record(bounded.folder / RECORD)
    assert "is above recipe.max_loss=0.5 at step 3" in record.error
    assert record.metrics["final_val_error"] is None
    free = _config(tmp_path, *words)
    assert "max_loss" not in free.identity()["recipe"] and free.identity() != bounded.identity()
    assert worlds[1].call(_train, free, []) == ["completed"]
