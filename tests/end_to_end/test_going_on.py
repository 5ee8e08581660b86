"""A run that is stopped, or whose starter is killed, and the same command again: as if nothing had happened."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bnbench.records import read_record
from tests.end_to_end.commands import BNBENCH, NO_LOGGER, finish, records, start, train

# Windows of two steps, 16 steps an epoch; seconds of training.
RUN = ("data.max_train=1024", "data.max_test=64", "epochs=6", "optim.warmup_epochs=0", "trainer.threads=1",
       "trainer.log_every=2", "norm.batch_size=8", *NO_LOGGER)  # fmt: skip
PATIENCE = 60.0


def _weights(folder: Path) -> dict[int, Any]:
    return {r.identity["seed"]: r.metrics["weights_sha256"] for r in records(folder)}


@pytest.fixture(scope="module")
def undisturbed(shared_workplace: Path) -> dict[int, Any]:
    before = Path.cwd()
    os.chdir(shared_workplace)
    try:
        assert train("-m", *RUN, "seed=0,1", "name=whole") == 0
    finally:
        os.chdir(before)
    return _weights(shared_workplace / "runs")


def _when_training(folder: Path, what: str = "epochs.csv") -> Path:
    """Waits until the first run of a sweep has evaluated once."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        found = sorted(folder.rglob(what))
        if found:
            return found[0].parent
        time.sleep(0.02)
    raise AssertionError(f"no {what} after {PATIENCE} s")


def test_asked_to_stop_it_makes_a_checkpoint_and_the_same_command_goes_on(
    workplace: Path, undisturbed: dict[int, Any]
) -> None:
    words = ("-m", *RUN, "seed=0,1", "name=left")
    process = start([BNBENCH, "train", *words], workplace)
    folder = _when_training(workplace / "runs")
    os.killpg(process.pid, signal.SIGTERM)  # the starter, its ranks and their server: what a scheduler does
    done = finish(process)
    assert done.returncode == 143, done.stderr
    assert "Missing: 2 of 2 run(s): 1 preempted, 1 not begun." in done.stdout
    assert f"\n  {shlex.join(['bnbench', 'train', *words])}\n" in done.stdout, "the command for just these"
    assert "asked to stop after step" in done.stderr
    record = read_record(folder / "record.json")
    assert record.status == "preempted"
    assert list((folder / "checkpoints").iterdir())
    assert train(*words) == 0
    assert _weights(workplace / "runs") == undisturbed
    resumed = read_record(folder / "record.json").provenance["resumed"]
    assert len(resumed) == 1 and resumed[0]["step"] > 0
    assert not (folder / "checkpoints").exists()


def test_ranks_outlive_a_killed_starter_only_until_they_have_made_a_checkpoint(
    workplace: Path, undisturbed: dict[int, Any]
) -> None:
    words = ("-m", *RUN, "seed=0,1", "name=left")
    process = start([BNBENCH, "train", *words], workplace)
    folder = _when_training(workplace / "runs")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    while _group(process.pid) and time.monotonic() - begun < PATIENCE:
        time.sleep(0.05)
    assert not _group(process.pid), "something is left behind"
    assert list((folder / "checkpoints").iterdir())
    assert train(*words) == 0
    assert _weights(workplace / "runs") == undisturbed


def test_asked_to_stop_while_ranks_start_it_does_not_wait_for_them(workplace: Path) -> None:
    """A scheduler kills after half a minute, and there is nothing to save."""
    process = start([BNBENCH, "train", "-m", *RUN, "seed=0,1", "name=left"], workplace)
    assert process.stdout is not None
    assert "2 run(s)" in process.stdout.readline()
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE / 4)
    done = finish(process)
    assert done.returncode == 143, done.stderr
    assert "Missing: 2 of 2 run(s): 2 not begun." in done.stdout
    # Their server, which imports for as long as that takes, ends after it.
    begun = time.monotonic()
    while _group(process.pid) and time.monotonic() - begun < PATIENCE / 4:
        time.sleep(0.1)
    assert _group(process.pid) == []


def _group(leader: int) -> list[int]:
    """What still runs of the session that a process led."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
