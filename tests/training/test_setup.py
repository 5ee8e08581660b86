"""A user's mistake that only the setup can see reaches every rank, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from tests.ranks import on_ranks


def _train(world, config: RunConfig):
    """What a rank sees of the run, and whether the world still works after it."""
    import torchvision

    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache
    from bnbench.training.world import SetupError

    def unreachable(self):
        raise OSError("Name or service not known")

    torchvision.datasets.CIFAR10.download = unreachable  # in this rank's process alone
    try:
        train_run(config, world, DataCache(), lambda event: None)
    except SetupError as error:
        return str(error), world.from_leader("still there")
    return None, None


def _case(name: str, folder: Path) -> tuple[list[str], str]:
    """The words of a mistake, and what is said about it."""
    if name == "too few images":
        return ["data.max_train=63"], "global_batch=64 is more than the 63 training images"
    if name == "a flag of GPUs":
        return ["trainer.tf32=true"], "trainer.tf32=true would be ignored on cpu"
    if name == "steps that do not divide":
        return ["data.max_train=192", "evals_per_epoch=2"], "does not divide the 3 steps of an epoch"
    if name == "no branch to start at zero":
        return ["recipe.zero_gamma=true", "model.residual=false"], "it has no residual branch"
    if name == "file in the way":
        config = compose_jobs(["trainer.accelerator=cpu", "logger=none"], multirun=False)[0]
        (folder / "out").mkdir()
        (folder / "out" / config.folder.name).write_text("in the way")
        return [], "cannot be made"
    return ["data=cifar10", f"data.root={folder / 'cifar'}"], "data=cifar10 is not at"


CASES = ("too few images", "file in the way", "no network", "a flag of GPUs", "steps that do not divide")
CASES += ("no branch to start at zero",)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_is_told_and_the_world_goes_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tests.ranks.SECONDS", 20)  # ranks that wait for each other wait for ever
    words, message = _case(name, tmp_path)
    words += [f"dir={tmp_path / 'out'}", "logger=none", "trainer.accelerator=cpu", "trainer.threads=1"]
    (config,) = compose_jobs(words, multirun=False)
    answers = on_ranks(2, _train, config)
    assert answers[0] == answers[1]
    assert message in answers[0][0]
    assert answers[0][1] == "still there"
    assert not list(tmp_path.rglob("*.json"))
    assert not config.folder.is_dir()


def _train_without_data_on_one(world, config: RunConfig):
    from bnbench import data

    def missing(config):
        raise ValueError("no data on this node")

    if world.place.rank == 1:
        data.load = missing
    return _train(world, config)


def test_one_rank_without_its_data_does_not_leave_the_others_in_a_norms_collectives(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.ranks.SECONDS", 20)
    words = ["norm=syncbn", f"dir={tmp_path}", "logger=none", "trainer.accelerator=cpu", "trainer.threads=1"]
    (config,) = compose_jobs([*words, "trainer.devices=2"], multirun=False)
    assert on_ranks(2, _train_without_data_on_one, config) == [("no data on this node", "still there")] * 2


def _edited_since(world, config: RunConfig):
    from bnbench.training.setup import DataCache, set_up
    from bnbench.training.world import SetupError

    try:
        set_up(config, world, DataCache())
    except (ValueError, SetupError) as error:
        return str(error)
    return None


def test_a_world_that_has_imported_another_file_than_the_plan_saw_refuses_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "edited_since.py"
    file.write_text("from torch.nn import BatchNorm2d as Mine\n")
    words = ["norm=custom", "norm.name=edited_since.Mine", "logger=none", "trainer.accelerator=cpu"]
    (config,) = compose_jobs(words)
    assert on_ranks(1, _edited_since, config) == [None]
    file.write_text("from torch.nn import InstanceNorm2d as Mine\n")
    (said,) = on_ranks(1, _edited_since, config)
    assert "norm.name=edited_since.Mine: its file was changed" in said


def _drawn(world, config: RunConfig):
    """What a user's own layer would draw in a run, the second time after others have drawn."""
    import random

    import numpy as np

    from bnbench.training.setup import DataCache, set_up

    found = []
    for _ in range(2):
        set_up(config, world, DataCache())
        found.append((random.random(), float(np.random.rand())))
    return found


def test_every_source_of_random_numbers_is_a_function_of_the_seed(tmp_path):
    jobs = compose_jobs(["logger=none", "trainer.accelerator=cpu", "seed=0,1"], multirun=True)
    first, second = (on_ranks(1, _drawn, job)[0] for job in jobs)
    assert first[0] == first[1] and second[0] == second[1]
    assert first[0][0] != second[0][0] and first[0][1] != second[0][1]


def _compiled(world, config: RunConfig, runs: int):
    """How many of the runs' models were compiled, each with a width of its own, in one process; and then, whether
    one run that wants too many is told.
    """
    import torch
    from torch import nn

    from bnbench.training.setup import settle

    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, width)

        def forward(self, x):
            return self.layer(x)

    for run in range(runs):
        settle(config, world)
        model = Model(run + 1)
        model.compile(backend=backend)
        model(torch.ones(2, run + 1))
    count = len(compiled)
    torch._dynamo.config.recompile_limit = 2
    try:
        for run in range(4):
            model = Model(run + 1)
            model.compile(backend=backend)
            model(torch.ones(2, run + 1))
    except Exception as error:
        return count, type(error).__name__
    return count, None


def test_a_compiled_run_is_compiled_however_many_came_before_it():
    (config,) = compose_jobs(["logger=none", "trainer.accelerator=cpu", "trainer.compile=true"])
    ((compiled, told),) = on_ranks(1, _compiled, config, 12)
    assert compiled == 12
    assert told == "FailOnRecompileLimitHit"
