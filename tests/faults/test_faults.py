"""What goes wrong under a sweep: nothing finished is lost or touched, no record is half-written, and the same command
again completes to what an undisturbed sweep comes to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnbench.records import RECORD, find_records, read_record
from tests.end_to_end.commands import BNBENCH, finish, folders, outcomes, record_files, run, start, train

pytestmark = pytest.mark.faults
# Windows of two steps, 8 steps an epoch; a checkpoint at every chance.
SWEEP = (
    "norm=bn,gn", "norm.batch_size=8", "seed=0,1", "data.max_train=512", "data.max_test=64", "model.width=4",
    "epochs=8", "optim.warmup_epochs=0", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=2",
    "trainer.checkpoint_minutes=0", "logger=none", "name=s",
)  # fmt: skip
COMMAND = (BNBENCH, "train", "-m", *SWEEP)
PATIENCE = 100.0


def _until(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    begun = time.monotonic()
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.02)
    return found


def _finished(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every record must be whole; those of finished runs with their bytes and times."""
    return {
        path: values
        for path, values in record_files(folder).items()
        if read_record(Path(path)).status == "completed"
    }


def _again(folder: Path) -> int:
    """The sweep in this process, whose ranks come from one warm server."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return train("-m", *SWEEP)
    finally:
        os.chdir(before)


def _assert_completes(folder: Path, undisturbed: dict[str, Any], kept: dict[str, Any]) -> None:
    """The same command again: what was finished is not touched, and all is as if nothing had happened."""
    assert _again(folder) == 0
    now = record_files(folder)
    assert {path: now[path] for path in kept} == kept
    assert outcomes(folder) == undisturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert _again(folder) == 0
    return outcomes(folder)


def _kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
@pytest.mark.parametrize("records", [0, 2])
def test_asked_to_stop(tmp_path, undisturbed, number, code, records):
    """In the midst of the first run, and of a later one."""
    process = start(COMMAND, tmp_path)
    _until(lambda: len(record_files(tmp_path)) >= records and list(tmp_path.rglob("checkpoints")), process)
    os.killpg(process.pid, number)
    done = finish(process)
    assert done.returncode == code, done.stderr
    kept = _finished(tmp_path)
    assert len(kept) < 4 and "Missing: " in done.stdout
    _assert_completes(tmp_path, undisturbed, kept)


def test_ctrl_c_twice(tmp_path, undisturbed):
    process = start(COMMAND, tmp_path)
    _until(lambda: len(record_files(tmp_path)) >= 1 and list(tmp_path.rglob("checkpoints")), process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    assert finish(process).returncode == 130
    _assert_completes(tmp_path, undisturbed, _finished(tmp_path))


def test_everything_killed_at_once_and_the_last_checkpoint_truncated(tmp_path, undisturbed):
    process = start(COMMAND, tmp_path)
    # Three or more were made: two are kept.
    made = _until(
        lambda: [p for p in tmp_path.rglob("*.ckpt") if not p.name.startswith("step-00000002")], process
    )
    _kill_all(process)
    newest = max(made[0].parent.glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    _assert_completes(tmp_path, undisturbed, _finished(tmp_path))
    remarks = read_record(newest.parents[1] / RECORD).provenance["checkpoint_remarks"]
    assert any("its bytes are not those that were written" in remark for remark in remarks)


@pytest.mark.parametrize("left", [0, 1, 300])
def test_a_record_truncated(tmp_path, undisturbed, left):
    assert _again(tmp_path) == 0
    first, *others = find_records(tmp_path)
    first.write_bytes(first.read_bytes()[:left])
    kept = {path: values for path, values in record_files(tmp_path).items() if path != str(first)}
    assert len(kept) == len(others) == 3
    _assert_completes(tmp_path, undisturbed, kept)


def test_two_sweeps_at_once_in_one_folder(tmp_path, undisturbed):
    both = [start(COMMAND, tmp_path) for _ in range(2)]
    codes = [finish(process).returncode for process in both]
    assert set(codes) <= {0, 75} and 0 in codes, codes
    assert outcomes(tmp_path) == undisturbed
    assert sum(len(list(path.glob("epochs.csv"))) for path in tmp_path.glob("runs/s/*")) == 4
    _assert_completes(tmp_path, undisturbed, _finished(tmp_path))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, which tests fill and make read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk, undisturbed):
    process = start(COMMAND, small_disk)
    _until(lambda: len(record_files(small_disk)) >= 1 and folders(small_disk, "checkpoints"), process)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    done = finish(process)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    kept = _finished(small_disk)
    assert 1 <= len(kept) < 4
    filler.unlink()
    _assert_completes(small_disk, undisturbed, kept)


def test_a_folder_that_becomes_read_only(small_disk, undisturbed):
    process = start(COMMAND, small_disk)
    _until(lambda: len(record_files(small_disk)) >= 1 and folders(small_disk, "checkpoints"), process)
    runs = str(
        small_disk / "runs"
    )  # over itself: a file that is open for writing is in the way of a plain remount
    subprocess.run(["mount", "--bind", runs, runs], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
    done = finish(process)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    kept = _finished(small_disk)
    assert 1 <= len(kept) < 4
    refused = run(COMMAND, small_disk)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    subprocess.run(["umount", runs], check=True)
    _assert_completes(small_disk, undisturbed, kept)
