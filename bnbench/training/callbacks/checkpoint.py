"""A run that goes on where it was: when a checkpoint is made, what it holds, and how each rank takes it up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bnbench.config import RunConfig
from bnbench.data import WatchedLoader
from bnbench.provenance import own_git
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.meter import Totals

KEY = "bnbench"


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> None: ...


def is_stateful(part: Any) -> TypeGuard[Stateful]:
    """Whether a callback, or what it writes to, has a state of its own (every Lightning callback has the methods)."""
    return getattr(type(part), "state_dict", Callback.state_dict) is not Callback.state_dict


class PreemptedError(Exception):
    """Raised on every rank at the same step, once a checkpoint is on disk; `str` says where."""


class Checkpoint(Callback):
    """Makes a checkpoint every `checkpoint_minutes` (None: only when asked to stop), and takes one up.

    It is made where nothing is half-done: after each `log_every` steps, a step later where an evaluation comes between,
    and at the end of an epoch but the last; an epoch has `steps`. Whether it is time is agreed on by all ranks
    there: rank 0's clock, any rank's `stop`, one small collective. Asked to stop, the run is left with
    PreemptedError.

    Lightning keeps weights, optimizer, schedule and where its loops are. What else has a state is here: `parts` (by
    name), the weights' average, and of each rank its buffers (running statistics differ by rank between
    evaluations), the batches of its unfinished window and its random numbers.
    Must come last of a bundle.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        parts: Mapping[str, Stateful],
        loader: WatchedLoader,
        config: RunConfig,
        steps: int,
        stop: Callable[[], bool],
    ) -> None:
        self.folder, self.parts, self.loader, self.stop = folder, parts, loader, stop
        minutes = config.trainer.checkpoint_minutes
        self.seconds = None if minutes is None else 60 * minutes
        self.every, self.between = config.trainer.log_every, steps // config.evals_per_epoch
        self.accumulate = config.recipe.accumulate
        self.resumed: list[dict[str, Any]] = []  # step and commit of what this run went on from
        self.seconds_before = 0.0  # of training, in the attempts before this one
        self._started = self._last = time.monotonic()
        self._taken: dict[str, Any] | None = None
        self._behind, self._to_look = 0, False

    # When

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, within = divmod(batch_idx + 1, self.accumulate)
        if within:
            return
        self._to_look = self._to_look or not done % self.every
        # Lightning goes on after an evaluation that a checkpoint came before, and so would skip it.
        if self._to_look and done % self.between:
            self._save_if_time(trainer, pl_module, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._save_if_time(trainer, pl_module, 0)

    def _save_if_time(self, trainer: Trainer, module: LightningModule, behind: int) -> None:
        """`behind`: batches of the epoch that the run goes on in."""
        self._to_look = False
        if trainer.should_stop:  # it diverged
            return
        due = self.seconds is not None and time.monotonic() - self._last >= self.seconds
        due, stop = self._agreed(due and trainer.is_global_zero, self.stop(), module.device)
        if due or stop:
            self._behind = behind
            trainer.save_checkpoint(self.folder.path(trainer.global_step))
            self._last = time.monotonic()
        if stop:
            kept = self.folder.problem or "the same command goes on from its checkpoint"
            raise PreemptedError(f"asked to stop after step {trainer.global_step}: {kept}")

    @staticmethod
    def _agreed(due: bool, stop: bool, device: torch.device) -> tuple[bool, bool]:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return due, stop
        votes = torch.tensor([due, stop], dtype=torch.int32, device=device)
        dist.all_reduce(votes)
        due_votes, stop_votes = votes.tolist()
        return due_votes > 0, stop_votes > 0

    # What

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        module: Any = pl_module
        mine = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "buffers": _buffers(module.model),
            "window": module.window.state_dict(),
            "random": random_state(module.device),
        }
        if module.average is not None:
            mine["average_buffers"] = _buffers(module.average.model)
        checkpoint[KEY] = {
            "ranks": _gathered(mine, trainer.world_size),
            "loader": self.loader.state_dict(),
            "average": None if module.average is None else module.average.state_dict(),
            "lr": module.lr,
            "validated": None if module.validated is None else list(vars(module.validated).values()),
            "batches": self._behind,
            "resumed": [*self.resumed],
            "commit": own_git()["commit"],
            "seconds": self.seconds_before + time.monotonic() - self._started,
        }

    # And back

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._taken = checkpoint[KEY] | {"step": checkpoint["global_step"]}
        self.loader.first = self._taken["batches"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After DDP has given every rank the first one's buffers."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        module: Any = pl_module
        mine = rank_state(taken["ranks"], trainer.global_rank, trainer.world_size)
        module.lr = taken["lr"]
        module.window.load_state_dict(mine["window"], module.device)
        module.validated = None if taken["validated"] is None else Totals(*taken["validated"])
        if module.average is not None:
            module.average.load_state_dict(taken["average"])
            _put_back(module.average.model, mine["average_buffers"])
        _put_back(module.model, mine["buffers"])
        for name, part in self.parts.items():
            part.load_state_dict(mine["parts"][name])
        self.loader.load_state_dict(taken["loader"])
        self.seconds_before = taken["seconds"]
        before = {"step": taken["step"], "commit": taken["commit"], "world_size": len(taken["ranks"])}
        self.resumed = [*taken["resumed"], before]
        if "random" in mine:
            set_random_state(mine["random"], module.device)


def rank_state(ranks: Sequence[Mapping[str, Any]], rank: int, size: int) -> dict[str, Any]:
    """What a rank takes up of a world of `len(ranks)`: its own, on as many ranks.

    On another number: the mean of the buffers, which are running statistics of different images; a share of the
    unfinished window; what the first rank had gathered, which had it from all. No random numbers: there is no
    stream of theirs for these ranks to go on with, and they keep the ones that they begin with.
    """
    if len(ranks) == size:
        return dict(ranks[rank])
    found = {"parts": ranks[0]["parts"]}
    for key in ("buffers", "average_buffers"):
        if key in ranks[0]:
            found[key] = {path: _mean([r[key][path] for r in ranks]) for path in ranks[0][key]}
    found["window"] = {"batches": [batch for r in ranks[rank::size] for batch in r["window"]["batches"]]}
    return found


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point() or all(torch.equal(first, other) for other in tensors):
        return first
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(first.dtype)


def random_state(device: torch.device) -> dict[str, Any]:
    name, keys, *rest = tuple(np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {path: buffer.detach().cpu().clone() for path, buffer in model.named_buffers()}


@torch.no_grad()
def _put_back(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for path, buffer in model.named_buffers():
        buffer.copy_(buffers[path])


def _gathered(mine: dict[str, Any], size: int) -> list[Any]:
    """Every rank's, on rank 0; the others, which write nothing, have empty places."""
    if size == 1:
        return [mine]
    found: list[Any] | None = [None] * size if dist.get_rank() == 0 else None
    dist.gather_object(mine, found)
    return found or [None] * size
