"""Our loop and strategies do to a run what Lightning's do: the same weights, hooks and progress."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from bnbench.compose import compose_jobs
from bnbench.training import loop
from bnbench.training import trainer as trainers
from bnbench.training.counting import Counting
from bnbench.training.loop import Ranks, StepLoop
from bnbench.training.setup import DataCache, set_up, settle
from tests.ranks import on_ranks

STEPS = 6


class Heard(Callback):
    """The hooks that callbacks of ours have, with where training is at each; and the collectives of a step."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int | None]] = []
        self.counted: list[list[str]] = []

    def _hear(self, hook, trainer, batch_idx=None):
        self.events.append((hook, trainer.global_step, batch_idx))

    def on_train_start(self, trainer, pl_module):
        self.on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._hear("start", trainer, batch_idx)

    def on_after_backward(self, trainer, pl_module):
        assert all(p.grad is not None for p in pl_module.parameters())
        self._hear("backward", trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._hear("end", trainer, batch_idx)
        if batch_idx == 3:  # with no evaluation behind it
            self.counting = Counting()
            self.counting.__enter__()
        elif batch_idx == 4:
            self.counting.__exit__(None, None, None)
            self.counted.append([each.kind for each in self.counting.collectives])

    def on_validation_start(self, trainer, pl_module):
        self._hear("evaluation", trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self._hear("epoch", trainer)


def _fitted(world, folder, precision, accumulate):
    os.chdir(folder)
    size = world.place.size
    (config,) = compose_jobs(
        [
            "model.width=4", f"global_batch={4 * size}", f"trainer.devices={size}", "trainer.threads=1", "epochs=2",
            "trainer.accelerator=cpu", f"data.max_train={4 * size * STEPS}", f"data.max_test={size}", "name=loop",
            f"trainer.precision={precision}", f"recipe.accumulate={accumulate}", "logger=none",
        ],
        multirun=False,
    )  # fmt: skip
    settle(config, world)
    cache, found = DataCache(), {}
    for whose in ("ours", "lightning's"):
        setup, heard = set_up(config, world, cache), Heard()
        with pytest.MonkeyPatch.context() as patch:
            if whose == "lightning's":
                patch.setattr(trainers, "Ranks", DDPStrategy)
                patch.setattr(trainers, "OneDevice", SingleDeviceStrategy)
                patch.setattr(trainers, "StepLoop", _TrainingEpochLoop)
            trainer = trainers.build_trainer(config, world, None, [heard], accumulate * STEPS // 2)
        trainer.fit(setup.module, setup.train_loader, setup.test_loader)
        fitted = trainer.fit_loop
        assert isinstance(fitted.epoch_loop, StepLoop) == (whose == "ours")
        assert heard.on_sigterm == signal.getsignal(signal.SIGTERM)
        weights = {path: value.clone() for path, value in setup.module.model.state_dict().items()}
        optimizer = trainer.optimizers[0].state_dict()["state"]
        found[whose] = weights, optimizer, heard.events, fitted.state_dict(), heard.counted
    return found


@pytest.mark.parametrize(
    ("ranks", "precision", "accumulate"), [(1, "fp32", 2), (2, "fp32", 1), (2, "bf16", 2), (2, "fp64", 1)]
)
def test_a_run_is_as_in_lightnings_own_loop(ranks, precision, accumulate, tmp_path):
    for found in on_ranks(ranks, _fitted, str(tmp_path), precision, accumulate):
        ours, theirs = found["ours"], found["lightning's"]
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=0)  # weights, statistics and momentum
        assert ours[2] == theirs[2]  # hooks
        assert [hook for hook, *_ in ours[2]].count("evaluation") == 4
        assert ours[3] == theirs[3]  # what a checkpoint keeps of the loops
        gradients = ["all_reduce"] if ranks > 1 and accumulate == 1 else []
        assert [sorted(kinds) for kinds in ours[4]] == [gradients] * 2
        broadcast = ["broadcast"] * (ranks > 1)  # of SIGTERM
        assert [sorted(kinds) for kinds in theirs[4]] == [gradients + broadcast] * 2


def test_ddp_is_made_on_the_stream_that_trains(monkeypatch):
    made, network = [], torch.nn.Linear(2, 2)
    strategy = Ranks(gradient_as_bucket_view=True)
    monkeypatch.setattr(strategy, "determine_ddp_device_ids", lambda: [0])  # as on a GPU
    monkeypatch.setattr(loop, "DistributedDataParallel", lambda **words: made.append(words))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: pytest.fail("another stream"))
    strategy._setup_model(network)
    assert made == [{"module": network, "device_ids": [0], "gradient_as_bucket_view": True}]
