"""Images read from disk while training: the same run however many processes read, and nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.commands import BNBENCH, NO_LOGGER, finish, records, start, train
from tests.end_to_end.test_worlds import left_in, processes_of

WORDS = (
    *(
        "data=streamed_folder",
        "data.root=pictures",
        "data.image_size=16",
        "global_batch=8",
        "trainer.threads=1",
    ),
    *("epochs=2", "optim.warmup_epochs=0", *NO_LOGGER),
)


@pytest.fixture
def pictures(workplace: Path) -> Path:
    """train/ and val/ with two classes of JPEGs of many sizes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 5)):
        for name in ("cat", "dog"):
            folder = workplace / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return workplace / "pictures"


def test_workers_change_nothing_but_time(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for workers in (0, 1):
        assert train(*WORDS, "data.val_images=8", f"data.workers={workers}", f"dir=runs/{workers}") == 0
    (alone,), (helped,) = (records(workplace / "runs" / str(workers)) for workers in (0, 1))
    assert alone.id == helped.id
    assert alone.metrics["weights_sha256"] == helped.metrics["weights_sha256"]
    assert alone.metrics["final_val_error"] == helped.metrics["final_val_error"]
    said = capsys.readouterr().out
    for record in (alone, helped):
        held = record.provenance["data"]
        sizes = {"train_images": 20, "holdout_images": 8, "test_images": 10, "classes": 2, "holdout_seed": 0}
        assert held == held | sizes | {"validated_on": "holdout"}
        share = record.timings["data_wait_share"]
        assert 0 < share <= 1
        assert (f" {share:.0%} of a step waits for data" in said) == (share > 0.1)


def test_an_image_that_does_not_decode_ends_the_run_and_is_named(
    workplace: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pictures / "train" / "dog" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    started = time.monotonic()
    assert train(*WORDS, "data.workers=1", "epochs=50") == 1
    assert time.monotonic() - started < 30, "the other rank waits in a collective, and must not be waited for"
    (record,) = records(workplace / "runs")
    assert record.status == "failed"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for text in (lines[0], record.error or ""):
        assert "pictures/train/dog/3.jpg does not decode" in text
        assert "replace or remove it" in text


def test_ctrl_c_leaves_no_worker(workplace: Path, pictures: Path, temporary: Path) -> None:
    process = start(
        [BNBENCH, "train", *WORDS, "data.workers=1", "epochs=500"], workplace, TMPDIR=str(temporary)
    )
    deadline = time.monotonic() + 100
    while not list(workplace.rglob("epochs.csv")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert len(processes_of(process.pid)) >= 7, (
        "two ranks, each with a worker, their server, tracker and starter"
    )
    os.killpg(process.pid, signal.SIGINT)
    interrupted = time.monotonic()
    done = finish(process, 20)
    while (left := processes_of(process.pid)) and time.monotonic() - interrupted < 20:
        time.sleep(0.1)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left
    assert done.returncode == 130, done.stderr
    assert "preempted: asked to stop after step" in done.stderr
    assert left_in(temporary) == []


def test_asked_to_stop_it_makes_its_checkpoint_with_workers_that_hear_it_too(
    workplace: Path, pictures: Path
) -> None:
    words = (*WORDS, "data.workers=1", "epochs=40", "trainer.log_every=1", "name=left")
    process = start([BNBENCH, "train", *words], workplace)
    begun = time.monotonic()
    while not (rows := sorted((workplace / "runs").rglob("epochs.csv"))):
        assert time.monotonic() - begun < 60 and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 143, done.stderr
    (record,) = records(workplace / "runs")
    assert record.status == "preempted", record.error
    assert list((rows[0].parent / "checkpoints").iterdir())
    assert train(*words) == 0
    assert train(*words[:-1], "name=whole") == 0
    left, whole = records(workplace / "runs")
    assert len(left.provenance["resumed"]) == 1
    assert left.metrics["weights_sha256"] == whole.metrics["weights_sha256"]
