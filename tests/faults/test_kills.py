"""Ranks killed at random moments: nothing finished is lost, and in the end all is as it would have been."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.records import find_records, read_record
from bnbench.sweep import pool
from bnbench.sweep.plan import plan_sweep
from tests.end_to_end.commands import outcomes, record_files

pytestmark = pytest.mark.faults
KILLS = 20
SWEEP = (
    "norm=bn,gn,brn", "norm.batch_size=8", "seed=0,1", "data.max_train=1024", "data.max_test=64", "model.width=4",
    "epochs=6", "optim.warmup_epochs=0", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=2",
    "trainer.checkpoint_minutes=0", "logger=none",
)  # fmt: skip


def _jobs(folder: Path) -> list[RunConfig]:
    return compose_jobs([*SWEEP, f"dir={folder}"], multirun=True)


class _Killer(threading.Thread):
    """Kills a rank of whichever world there is, after a time drawn at random, again and again."""

    def __init__(self, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.left, self.draws, self.ended = kills, random.Random(seed), False
        self.world: Any = None

    def run(self) -> None:
        while self.left and not self.ended:
            time.sleep(self.draws.uniform(0.1, 3.0))
            world = self.world
            if world is None or not world.alive:
                continue
            rank = self.draws.choice(world._ranks)
            if rank.is_alive():
                os.kill(rank.pid, signal.SIGKILL)
                self.left -= 1


def test_a_sweep_under_twenty_kills_comes_to_what_it_would_have_come_to(tmp_path, monkeypatch):
    whole, broken = _jobs(tmp_path / "whole"), _jobs(tmp_path / "broken")
    assert {outcome.status for outcome in pool.run_all(plan_sweep(whole))} == {"completed"}
    killer = _Killer(KILLS, seed=5)

    class Watched(pool.SpawnedWorld):
        def begin(self, config):
            killer.world = self
            super().begin(config)

    monkeypatch.setattr(pool, "SpawnedWorld", Watched)
    killer.start()
    statuses, finished = [], dict[str, Any]()
    while (plan := plan_sweep(broken)).todo:
        statuses += [outcome.status for outcome in pool.run_all(plan)]
        now = record_files(tmp_path / "broken")
        for path, was in finished.items():
            assert now[path] == was, "a finished run's record is never touched"
        finished = {
            path: values for path, values in now.items() if read_record(Path(path)).status == "completed"
        }
        assert len(statuses) < 20 * KILLS, "it gets nowhere"
    killer.ended = True
    killer.join()
    assert statuses.count("failed") >= 5, f"{statuses}: hardly a kill came within a run"
    assert set(statuses) == {"failed", "completed"}

    assert outcomes(tmp_path / "broken") == outcomes(tmp_path / "whole")
    resumed = [read_record(path).provenance["resumed"] for path in find_records(tmp_path / "broken")]
    assert any(resumed), "some went on from a checkpoint"
