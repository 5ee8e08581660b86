"""Thirty cells on digits, interrupted three times, against the same sweep undisturbed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bnbench.records import RECORD
from tests.end_to_end.commands import BNBENCH, finish, folders, outcomes, record_files, run, start

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
CELLS = 30
SWEEP = (
    "norm=bn,brn,frozen,ws_bn,evonorm_b0", "norm.batch_size=2,8,32", "optim.lr=0.02,0.1", "data.max_train=256",
    "data.max_test=64", "model.width=4", "epochs=2", "optim.warmup_epochs=0", "trainer.accelerator=cpu",
    "trainer.threads=1", "trainer.log_every=1", "trainer.checkpoint_minutes=0", "logger=none", "name=cells",
)  # fmt: skip
COMMAND = (BNBENCH, "train", "-m", *SWEEP)


def test_a_sweep_of_thirty_cells_interrupted_three_times(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = run(COMMAND, whole)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} cell(s), {CELLS} run(s)" in done.stdout
    kept: dict[str, tuple[bytes, int]] = {}
    for number, records in ((signal.SIGTERM, 5), (signal.SIGKILL, 13), (signal.SIGINT, 22)):
        process = start(COMMAND, broken)
        begun = time.monotonic()
        while len(record_files(broken)) < records or not folders(broken, "checkpoints"):
            assert process.poll() is None and time.monotonic() - begun < 120
            time.sleep(0.01)
        os.killpg(process.pid, number)
        assert (
            finish(process).returncode
            == {signal.SIGTERM: 143, signal.SIGKILL: -9, signal.SIGINT: 130}[number]
        )
        now = record_files(broken)
        assert {path: now.get(path) for path in kept} == kept, "what is finished is never touched"
        finished = {path: values for path, values in now.items() if b'"status": "completed"' in values[0]}
        assert len(kept) < len(finished) < CELLS
        kept = finished
    done = run(COMMAND, broken)
    assert done.returncode == 0, done.stderr
    assert len(list(broken.rglob(RECORD))) == CELLS
    assert outcomes(broken) == outcomes(whole)
