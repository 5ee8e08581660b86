"""Runs that several worlds or processes take from one folder: each is trained once, and none is lost."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.lock import RunLock
from bnbench.records import RECORD, read_record, write_record
from bnbench.sweep import pool
from bnbench.sweep.options import TARGET, PoolOptions, Share, pool_options
from bnbench.sweep.plan import plan_sweep
from bnbench.sweep.queue import Queue
from tests.records_factory import make_record

TINY = (
    "data.max_train=128", "data.max_test=64", "model.width=4", "epochs=1", "optim.warmup_epochs=0",
    "trainer.accelerator=cpu", "trainer.threads=1", "logger=none",
)  # fmt: skip
SWEEP = ("norm=bn,gn", "norm.batch_size=8", "seed=0,1,2")


def _jobs(folder: Path, *words: str) -> list[RunConfig]:
    return compose_jobs([*TINY, f"dir={folder}", *words], multirun=True)


def _weights(jobs: list[RunConfig]) -> dict[str, str]:
    return {job.folder.name: read_record(job.folder / RECORD).metrics["weights_sha256"] for job in jobs}


def _taken(job: RunConfig) -> RunLock:
    job.folder.mkdir(parents=True)
    lock = RunLock(job.folder)
    assert lock.take()
    return lock


def test_what_another_process_trains_comes_last_and_is_left_to_it(tmp_path):
    first, second, third = _jobs(tmp_path, "seed=0,1,2")
    lock = _taken(first)
    queue = Queue([first, second, third], patience=0.05)
    assert queue.take() == second
    write_record(third.folder, make_record())  # by the other process, since this one planned
    assert queue.take() is None
    assert [(o.config.seed, o.status) for o in queue.outcomes] == [(2, "completed")]
    assert not queue.is_over(), "it may be an abandoned rank's, which ends soon"
    time.sleep(0.1)
    assert queue.is_over()
    assert [(o.config.seed, o.status) for o in queue.outcomes] == [(2, "completed"), (0, "elsewhere")]
    lock.release()


def test_what_another_process_gave_up_is_taken_over(tmp_path):
    (job,) = _jobs(tmp_path, "seed=0")
    lock = _taken(job)
    queue = Queue([job], patience=60)
    assert queue.take() is None and not queue.is_over()
    lock.release()
    assert queue.take() == job
    queue.put_back(job)
    assert queue.take() == job
    assert queue.take() is None


def test_worlds_side_by_side_and_new_ones_for_each_run_give_what_one_gives(tmp_path, monkeypatch):
    worlds = []

    class Counted(pool.SpawnedWorld):
        def __init__(self, first, share):
            super().__init__(first, share)
            worlds.append((share.index, share.of))

    monkeypatch.setattr(pool, "SpawnedWorld", Counted)
    found = {}
    for name, options, count in [
        ("one", PoolOptions(), 1), ("two", PoolOptions(worlds=2), 2), ("fresh", PoolOptions(fresh_world=True), 6),
    ]:  # fmt: skip
        jobs = _jobs(tmp_path / name, *SWEEP)
        before = len(worlds)
        outcomes = pool.run_all(plan_sweep(jobs), options)
        assert {outcome.status for outcome in outcomes} == {"completed"}
        assert len(outcomes) == 6
        assert len(worlds) - before == count
        found[name] = _weights(jobs)
    assert set(worlds[1:3]) == {(0, 2), (1, 2)}
    assert found["one"] == found["two"] == found["fresh"]


def test_two_sweeps_in_one_folder_share_the_runs_out(tmp_path):
    """Started at the same moment, in one process here: what they share is the folder alone."""
    whole, shared = _jobs(tmp_path / "whole", *SWEEP), _jobs(tmp_path / "shared", *SWEEP)
    pool.run_all(plan_sweep(whole))
    found: dict[int, list[pool.Outcome]] = {}

    def sweep(number: int) -> None:
        from bnbench.sweep.progress import SweepProgress
        from bnbench.sweep.stopping import StopRequest

        with SweepProgress(6, quiet=True) as progress:  # signals belong to the main thread
            one = pool.Pool(plan_sweep(shared), PoolOptions(), StopRequest(), progress)
            try:
                found[number] = one.run()
            finally:
                one.end()

    threads = [threading.Thread(target=sweep, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(found) == {0, 1}
    for outcomes in found.values():
        assert {outcome.status for outcome in outcomes} <= {"completed", "elsewhere"}
    assert all({job.folder for job in shared} == {o.config.folder for o in os_} for os_ in found.values())
    assert _weights(shared) == _weights(whole)


@pytest.mark.parametrize(
    ("launcher", "problem"),
    [
        ({"worlds": 0}, r"hydra\.launcher\.worlds=0 must be a whole number of at least 1"),
        ({"worlds": True}, r"worlds=True must be"),
        ({"fresh_world": "yes"}, r"fresh_world=yes must be true or false"),
        ({"world": 2}, r"hydra\.launcher\.world is read by nothing; known: worlds, fresh_world"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(launcher, problem):
    with pytest.raises(ValueError, match=problem):
        pool_options({"_target_": TARGET, **launcher})


def test_the_shares_of_a_machine_are_disjoint():
    cores = [3, 5, 7, 9, 11]
    assert [Share(i, 2).cores(cores) for i in range(2)] == [[3, 5], [7, 9]]
    assert [Share(i, 9).cores(cores) for i in range(2)] == [cores, cores], "fewer cores than worlds"
    assert [Share(i, 2, 2).gpus(2, 4, None) for i in range(2)] == [["0", "1"], ["2", "3"]]
    assert [Share(i, 2).gpus(1, 2, "4,6") for i in range(2)] == [["4"], ["6"]]
    assert Share(1, 2, 2).gpus(2, 2, "4,6") == Share(1, 2, 2).gpus(2, 2, None) == [], "never another world's"


@pytest.mark.parametrize("visible", [None, "7,5,3,1"])
def test_worlds_of_runs_of_several_sizes_never_meet_on_a_gpu(visible):
    """A sweep over trainer.devices: at any moment each world is at a run of its own size."""
    for mine, other in itertools.product((1, 2), repeat=2):
        first, second = (set(Share(i, 2, 2).gpus(n, 4, visible)) for i, n in enumerate((mine, other)))
        assert (len(first), len(second)) == (mine, other)
        assert not first & second


def test_a_rank_keeps_to_its_share(monkeypatch):
    kept: list[list[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7,8")
    Share(1, 2, 2).take(2, 4)
    assert (kept, os.environ["CUDA_VISIBLE_DEVICES"]) == ([[2, 3]], "7,8")


def test_a_world_that_is_left_without_gpus_is_refused_and_does_not_train_on_the_cpu(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    with pytest.raises(
        ValueError, match=r"^hydra\.launcher\.worlds=2 with trainer\.devices=2: that takes 4 GPUs.* 2 here"
    ):
        Share(1, 2, 2).take(2, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,6"
    Share(1, 2, 2).take(2, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "a machine without any: the CPU is what there is"
