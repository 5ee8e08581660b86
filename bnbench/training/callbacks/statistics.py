"""Running statistics during training: by a policy before evaluation, watched, for some norms merged at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bnbench.norms import (
    freeze_statistics,
    merge_running_statistics,
    precise_statistics,
    running_statistics,
    tracking_norms,
)

Precise = Callable[[nn.Module], None]


def precise_over(loader: Any, steps: int) -> Precise:
    """`precise_statistics` over the first global steps of a training loader's epoch, the same images on every world.

    At most an epoch; augmented, as the running averages see them. The loader's own iteration goes on undisturbed.
    """

    def images() -> Iterator[Tensor]:
        parts = len(loader) // loader.steps  # of accumulation
        return (batch[0] for batch in islice(iter(loader), min(steps, loader.steps) * parts))

    return lambda model: precise_statistics(model, images())


class RunningStatistics(Callback):
    """Applies a policy before each evaluation, to the network that is evaluated.

    Statistics that are not finite then end the run on every rank, since after the merge all see the same:
    the training loss does not read them and may look well. `poisoned` says which and when.
    Under `precise` the averages go on after the evaluation where they were; `averages` holds them, merged.
    """

    def __init__(self, policy: str, precise: Precise | None = None) -> None:
        assert (policy == "precise") == (precise is not None), policy
        self.merging, self.precise = "mean" if precise else policy, precise
        self.poisoned: str | None = None
        self.averages: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            self.merge(_network(pl_module, "evaluated"), trainer.global_step)
        if self.poisoned is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        load_statistics(_network(pl_module, "evaluated"), self.averages)
        self.averages = {}

    def merge(self, model: nn.Module, step: int) -> None:
        """Call it on every rank."""
        merge_running_statistics(model, self.merging)
        if self.precise is not None and tracking_norms(model):
            self.averages = {path: buffer.clone() for path, buffer in running_statistics(model).items()}
            self.precise(model)
        path = poisoned_buffer(model)
        if path is not None and self.poisoned is None:
            self.poisoned = f"running statistics not finite after step {step}: {path}"


class MergeEveryStep(Callback):
    """For a norm whose training step reads the running statistics (Batch Renormalization), on several ranks."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        marks: Any = pl_module.marks
        marks.begin("forward")  # which reads them: the norm's work, and the norm's collective
        merge_running_statistics(pl_module, "mean")
        marks.begin("other")


class FreezeStatistics(Callback):
    """From step ceil(`after` * steps of training) on, batch norms normalize by their statistics of then."""

    def __init__(self, after: float, total_steps: int, policy: str, precise: Precise | None = None) -> None:
        self.first = math.ceil(after * total_steps)
        self.merging, self.precise = "mean" if precise else policy, precise
        self.measured = self.frozen = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.frozen or trainer.global_step < self.first:
            return
        self.frozen = True
        if not self.measured:  # a run that goes on from a checkpoint has the statistics of then
            self.measured = True
            merge_running_statistics(pl_module, self.merging)
            if self.precise is not None:
                with trainer.precision_plugin.forward_context():
                    self.precise(_network(pl_module, "model"))
        freeze_statistics(pl_module)
        freeze_statistics(_network(pl_module, "evaluated"))  # a moving average is no part of the module

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = state["measured"]


def load_statistics(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    """Put running statistics, by their path, into a model."""
    for path, buffer in running_statistics(model).items():
        if path in statistics:
            buffer.copy_(statistics[path])


def poisoned_buffer(model: nn.Module) -> str | None:
    """The path of the first running mean or variance with a value that is not finite; one wait for the device."""
    running = running_statistics(model)
    if not running:
        return None
    finite = torch.stack([buffer.isfinite().all() for buffer in running.values()]).tolist()
    bad = [path for path, fine in zip(running, finite, strict=True) if not fine]
    return bad[0] if bad else None


def _network(module: LightningModule, name: str) -> nn.Module:
    """`model`, or `evaluated`: what is validated and kept, the weights' moving average where there is one."""
    network = getattr(module, name)
    assert isinstance(network, nn.Module)
    return network
