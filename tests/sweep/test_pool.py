"""Runs on worlds: what one leaves behind no other sees, and a rank that dies ends one run."""

from __future__ import annotations

import io
import os
import re
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from rich.console import Console

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.records import EPOCHS, RECORD, Record, is_finished, read_record
from bnbench.sweep import pool
from bnbench.sweep.plan import plan_single, plan_sweep
from bnbench.sweep.progress import SweepProgress
from bnbench.sweep.stopping import StopRequest
from bnbench.training.checkpoint import FOLDER, KEPT

TINY = (
    "data.max_train=128", "data.max_test=64", "model.width=4", "epochs=1", "optim.warmup_epochs=0",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=1", "logger=none",
)  # fmt: skip


def _job(folder: Path, *words: str) -> RunConfig:
    return compose_jobs([*TINY, f"dir={folder}", *words], multirun=False)[0]


def _run(jobs: Sequence[RunConfig]) -> list[pool.Outcome]:
    return pool.run_all(plan_sweep(jobs))


def _record(config: RunConfig) -> Record:
    return read_record(config.folder / RECORD)


def _on(world: pool.SpawnedWorld, config: RunConfig) -> pool.Outcome:
    progress = SweepProgress(1, Console(file=io.StringIO()))
    progress.begin(config)
    world.begin(config)
    while True:
        outcome = world.hear(set(wait(world.pipes, 1)), StopRequest(), progress.update)
        if outcome is not None:
            return outcome


SAME = ("norm.batch_size=4", "seed=7")
SWEEP = {  # in this order, on one world
    "other model": ("norm=gn", "model=resnet14", "trainer.precision=fp64", "data.augment=crop_flip"),
    "other data": ("norm=syncbn", "seed=8", "data.max_train=192", "trainer.threads=2"),
    "diverges": ("optim.lr=1e30", "epochs=50"),
    "too few images": ("data.max_train=63",),
    "same": SAME,
    "same again": SAME,
    "other seed": ("norm.batch_size=4", "seed=9"),
    "drops and averages": (
        "norm=brn",
        "model.dropout=0.3",
        "recipe.ema=0.9",
        "recipe.clip_norm=1.0",
        "epochs=2",
    ),
    "looks inside": (
        "norm=vbn",
        "norm.reference_size=16",
        "measure.landscape=true",
        "measure.landscape_every=1",
    ),
    "tenth": SAME,
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> dict[str, tuple[RunConfig, pool.Outcome]]:
    """Each run in a folder of its own: plan_sweep would collapse those of one identity."""
    folder = tmp_path_factory.mktemp("swept")
    jobs = [_job(folder / name.replace(" ", "-"), *words) for name, words in SWEEP.items()]
    outcomes = pool.run_all(pool.Plan(todo=jobs))
    return dict(zip(SWEEP, zip(jobs, outcomes, strict=True), strict=True))


def _weights(config: RunConfig) -> str:
    return _record(config).metrics["weights_sha256"]


def test_a_run_is_a_function_of_its_config_alone(swept, tmp_path):
    """Bit-identical by itself, after others in one world, and once more after that."""
    alone = _job(tmp_path, *SAME)
    (outcome,) = _run([alone])
    assert outcome.status == "completed", outcome.error
    assert list(SWEEP).index("tenth") == 9
    for name in ("same", "same again", "tenth"):
        record = _record(swept[name][0])
        assert record.identity == _record(alone).identity
        assert record.metrics == _record(alone).metrics
    assert len(_weights(alone)) == 64


def test_every_other_run_is_another_training(swept):
    names = ("other model", "other data", "diverges", "same", "other seed")
    assert len({_weights(swept[name][0]) for name in names}) == len(names)


def test_what_ends_badly_ends_alone(swept):
    assert {name: outcome.status for name, (_, outcome) in swept.items()} == {
        name: {"diverges": "diverged", "too few images": "refused"}.get(name, "completed") for name in SWEEP
    }
    refused, outcome = swept["too few images"]
    assert "63 training images" in outcome.error
    assert not Path(refused.dir).exists(), "nothing is written for a run that cannot start"


def _assert_diverged(job: RunConfig, outcome: pool.Outcome) -> None:
    assert outcome.status == "diverged", outcome.error
    record = _record(job)
    assert record.status == "diverged"
    assert record.metrics["final_val_error"] is None
    assert record.metrics["final_val_loss"] is None
    assert "not finite" in record.error
    assert is_finished(job.folder), "the same run would diverge again"
    assert plan_single(job).todo == []


def test_a_run_that_diverges_says_when_and_has_no_error(swept):
    _assert_diverged(*swept["diverges"])
    assert "step 2" in _record(swept["diverges"][0]).error, (
        "the first step's loss is finite, the second's is not"
    )


def test_a_run_whose_last_step_diverges_has_diverged(tmp_path):
    """The loss of the only step is finite; the weights that it leaves are not, nor is their validation."""
    job = _job(tmp_path, "optim.lr=1e38", "global_batch=128")
    (outcome,) = _run([job])
    _assert_diverged(job, outcome)


def test_a_rank_that_is_killed_ends_its_run_and_no_other(tmp_path, monkeypatch):
    """In the flow of a sweep: the first run loses a rank, the second completes on a new world."""
    worlds = []

    class LosesARank(pool.SpawnedWorld):
        def begin(self, config):
            worlds.append([rank.pid for rank in self._ranks])
            if config.seed == 13:
                os.kill(self._ranks[1].pid, signal.SIGKILL)
            super().begin(config)

    monkeypatch.setattr(pool, "SpawnedWorld", LosesARank)
    jobs = [_job(tmp_path, "seed=13"), _job(tmp_path, "seed=14"), _job(tmp_path, "seed=15")]
    outcomes = _run(jobs)
    assert [outcome.status for outcome in outcomes] == ["failed", "completed", "completed"]
    assert worlds[0] != worlds[1] == worlds[2]
    record = _record(jobs[0])
    assert record.status == "failed"
    assert "rank 1" in record.error and "-9" in record.error
    assert plan_sweep(jobs).todo == [jobs[0]], "a failed run runs again"


def test_a_rank_that_dies_between_runs_is_named_and_the_run_can_be_repeated(tmp_path):
    first, second = _job(tmp_path, "seed=1"), _job(tmp_path, "seed=2")
    world = pool.SpawnedWorld(first)
    try:
        assert _on(world, first).status == "completed"
        os.kill(world._ranks[1].pid, signal.SIGKILL)
        world._ranks[1].join(10)
        assert _on(world, second).status == "failed"
        assert not world.alive
        ranks = world._ranks
    finally:
        world.close()
    assert not any(rank.is_alive() for rank in ranks), "no rank is left behind"
    record = _record(second)
    assert "rank 1" in record.error and "-9" in record.error, record.error
    assert not is_finished(second.folder)
    (again,) = _run([second])
    assert again.status == "completed"
    assert _record(second).status == "completed"
    rows = (second.folder / EPOCHS).read_text().splitlines()
    assert len(rows) == 2, "a header and one epoch: nothing of the attempt that failed"


def test_a_run_that_has_had_its_time_ends_alone_and_goes_on_when_asked_again(tmp_path):
    """Between two windows of steps: with a checkpoint, in a world that goes on."""
    long = ("data.max_train=1024", "epochs=200", "seed=21")
    late, next_one = _job(tmp_path, *long, "trainer.time_limit_minutes=0.05"), _job(tmp_path, "seed=22")
    outcomes = _run([late, next_one])
    assert [outcome.status for outcome in outcomes] == ["timeout", "completed"]
    record = _record(late)
    assert record.status == "timeout"
    assert "trainer.time_limit_minutes=0.05 are over" in record.error
    assert not is_finished(late.folder)
    (again,) = _run([late])
    assert again.status == "timeout"
    assert _step(_record(late)) > _step(record), "it went on, not anew"
    assert len(list((late.folder / FOLDER).iterdir())) == KEPT


def _step(record: Record) -> int:
    return int(re.search(r"after step (\d+)", record.error)[1])


def test_a_run_whose_rank_was_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    job = _job(tmp_path / "left", "epochs=8", "trainer.checkpoint_minutes=0")
    whole = _job(tmp_path / "whole", "epochs=8")

    class LosesARank(pool.SpawnedWorld):
        def hear(self, ready, stop, report):
            def kill(config, event):
                if event.get("step") == 9:
                    os.kill(self._ranks[1].pid, signal.SIGKILL)

            return super().hear(ready, stop, kill)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "SpawnedWorld", LosesARank)
        (outcome,) = _run([job])
    assert outcome.status == "failed"
    assert (job.folder / FOLDER).exists()
    for each in (job, whole):  # by itself: a plan has one run of an identity
        assert [outcome.status for outcome in _run([each])] == ["completed"]
    assert _record(job).metrics == _record(whole).metrics
    assert _record(job).provenance["resumed"] and not _record(whole).provenance["resumed"]


def test_a_run_for_another_world_gets_one(tmp_path):
    two, one = _job(tmp_path), _job(tmp_path, "trainer.devices=1")
    outcomes = _run([two, one])
    assert [outcome.status for outcome in outcomes] == ["completed", "completed"]
    assert [_record(job).provenance["world"]["size"] for job in (two, one)] == [2, 1]


HANGS = """
import time
from torch import nn
from torch.distributed import get_rank

class HangsOnOneRank(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.norm, self.steps = nn.BatchNorm2d(3), 0
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

    def forward(self, x):
        self.steps += self.training
        if self.steps > 3 and get_rank() == 1:
            time.sleep(3600)
        return self.body(self.norm(x))
"""


TAKES_ALL = """
import torch
from torch import nn

class TakesAll(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.norm, self.steps = nn.BatchNorm2d(3), 0
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

    def forward(self, x):
        self.steps += self.training
        if self.steps > 3:
            torch.empty(1 << 50)
        return self.body(self.norm(x))
"""


def test_memory_that_runs_out_is_a_status_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "greedy_model.py").write_text(TAKES_ALL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    takes_all = _job(
        tmp_path, "model=custom", "model.name=greedy_model.TakesAll", "model.width=null", "epochs=4"
    )
    outcomes = _run([takes_all, _job(tmp_path, "seed=31")])
    assert [outcome.status for outcome in outcomes] == ["oom", "completed"]
    assert _record(takes_all).status == "oom" and "can't allocate memory" in _record(takes_all).error


def test_a_rank_that_hangs_ends_its_run_by_the_timeout_of_collectives(tmp_path, monkeypatch):
    (tmp_path / "hanging_model.py").write_text(HANGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    hangs = _job(
        tmp_path, "model=custom", "model.name=hanging_model.HangsOnOneRank", "model.width=null", "epochs=4",
        "trainer.collective_timeout_minutes=0.1",
    )  # fmt: skip
    begun = time.monotonic()
    outcomes = _run([hangs, _job(tmp_path, "seed=31")])
    assert [outcome.status for outcome in outcomes] == ["timeout", "completed"]
    record = _record(hangs)
    assert record.status == "timeout" and "rank 0: Traceback" in record.error
    assert time.monotonic() - begun < 60
