"""A user's mistake that only the setup can see reaches every rank, and nothing is written."""

from __future__ import annotations

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
