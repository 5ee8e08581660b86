"""Where a step's time goes, what it computes and what it says to other ranks: looked at now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bnbench.config import RunConfig
from bnbench.data import WatchedLoader
from bnbench.provenance import cpu_model
from bnbench.training.counting import Counting, by_owner
from bnbench.training.marks import PARTS, UNMARKED, Marks
from bnbench.training.peaks import peak_flops_per_s
from bnbench.training.world import World

from .look import is_compiled

# Steps of an attempt. In the first, optimizers make their state; in the second, DDP settles its buckets.
COUNTED_STEP = 3
FIRST_LOOK = 6
LOOKS_KEPT = 1000  # the last ones: a long run's checkpoints stay small


class Speed(Callback):
    """Every `measure.speed_every` steps, the time of one step by its parts; once, its operations and collectives.

    A look's step lasts from the end of the step before to its own end, callbacks and Lightning's loop included:

    - `data_wait`: inside the loader's next(), waiting for a batch or making it;
    - `forward`: the network and the loss, with what a norm does before them; `backward`: the gradients on this rank;
    - `communication`: standing still for other ranks, whatever for: the norms' collectives (out of forward and
      backward; those of a compiled network stay in there) and the end of the gradients' average that the backward
      pass has not hidden;
    - `optimizer`: clipping, the optimizer's and the schedule's step, zeroing gradients, the weights' moving average;
    - `other`: the rest.

    Looks are at typical steps: not at the first of an attempt or after an evaluation, nor beside one that is looked
    into for something else, or where a window of the curve ends (unless that is every step or every second); a look
    that would be waits for the next step. Nothing is put into the other steps, and weights are what they would be.
    Must come before the callbacks that do something at the end of a step.
    """

    def __init__(self, config: RunConfig, world: World, loader: WatchedLoader) -> None:
        measure = config.measure
        assert measure.speed_every is not None
        self.every, self.parts = measure.speed_every, config.recipe.accumulate
        self.window = config.trainer.log_every
        other_looks = (measure.health_every, measure.landscape_every if measure.landscape else None)
        self.other_looks = [every for every in other_looks if every is not None and every > 2]
        self.world, self.loader = world, loader
        cuda = world.device.type == "cuda"
        self.device = torch.cuda.get_device_name(world.device) if cuda else None
        self.peak = peak_flops_per_s(self.device, config.trainer.precision, config.trainer.tf32)
        self.counts: dict[str, Any] | None = None
        self.looks: deque[tuple[float, ...]] = deque(maxlen=LOOKS_KEPT)  # milliseconds of each of PARTS
        self._steps, self._next = 0, COUNTED_STEP  # of this attempt: steps taken, and the one to look at
        self._marks: Marks | None = None
        self._counting: Counting | None = None
        self._unread: deque[Marks] = deque()

    # When

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, within = divmod(batch_idx + 1, self.parts)  # steps of this epoch
        if within:
            return
        self._steps += 1
        if self._marks is not None:
            self._end_look(pl_module)
        if self._steps + 1 >= self._next and self._is_typical(trainer.global_step + 1, done):
            self._begin_look(pl_module)

    def _is_typical(self, step: int, done: int) -> bool:
        """Whether nothing but training is to be done at a step, and by the one before, the epoch's number `done`."""
        if self.window > 1 and done % self.window == 0:
            return False
        return all(step % every and (step - 1) % every for every in self.other_looks)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    # What

    def _begin_look(self, module: Any) -> None:
        self._read()
        self._marks = marks = Marks(module.device, self.world.place.size)
        module.marks, self.loader.begin = marks, marks.begin
        if self.counts is None:
            self._counting = Counting(lambda: marks.part)
            self._counting.__enter__()
        elif not is_compiled(_network(module)):  # it would be compiled anew for other functions
            marks.watch_calls()

    def _end_look(self, module: LightningModule) -> None:
        marks, counting = self._marks, self._counting
        assert marks is not None
        marks.end()
        self._leave(module)
        if counting is None:
            self._unread.append(marks)
            self._next = self._steps + self.every
            return
        self._next = FIRST_LOOK
        # Views of DDP's buckets, until they are zeroed.
        gradients = [p.grad for p in _network(module).parameters() if p.grad is not None]
        self.counts = {
            "flops_per_step": counting.flops,
            "collectives": by_owner(counting.collectives, gradients),
        }

    def _leave(self, module: Any) -> None:
        marks, self._marks = self._marks, None
        counting, self._counting = self._counting, None
        if counting is not None:
            counting.__exit__(None, None, None)
        if marks is not None:
            marks.leave_calls()
            module.marks, self.loader.begin = UNMARKED, UNMARKED.begin

    def _read(self) -> None:
        """The looks that the device is through with."""
        while self._unread and self._unread[0].ready:
            self.looks.append(tuple(self._unread.popleft().milliseconds().values()))

    # And what came of it

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"where": self._where(), "looks": list(self.looks), "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Steps on other ranks or devices are other steps: the looks at them are left."""
        if state["where"] == self._where():
            self.looks.extend(tuple(look) for look in state["looks"])
            self.counts = state["counts"]
            self._next = FIRST_LOOK if self.counts else COUNTED_STEP

    def _where(self) -> list[Any]:
        return [self.world.place.size, self.world.place.nodes, self.device or cpu_model()]

    def summary(self) -> dict[str, Any]:
        """The record's `speed`. Call it on every rank."""
        for marks in self._unread:
            marks.wait()
        self._read()
        ranks = self.world.gathered(typical(self.looks))
        rank = busiest(ranks)
        parts = ranks[rank]
        step_ms = sum(parts.values()) if parts else None
        counts = self.counts or {"flops_per_step": None, "collectives": None}
        flops = counts["flops_per_step"]
        achieved = 1000 * flops / step_ms if flops is not None and step_ms else None
        return {
            "looks": len(self.looks),
            "rank": rank if parts else None,
            "step_ms": step_ms,
            "parts_ms": parts or dict.fromkeys(PARTS),
            "flops_per_step": flops,
            "achieved_flops_per_s": achieved,
            "peak_flops_per_s": self.peak,
            "mfu": achieved / self.peak if achieved is not None and self.peak is not None else None,
            "collectives": counts["collectives"],
        }


def typical(looks: Iterable[Sequence[float]]) -> dict[str, float]:
    """Each part's mean over the looks in the middle half, by the length of the step: a median's parts would not add
    up to the step. Empty without looks."""
    ordered = sorted(looks, key=sum)
    cut = (len(ordered) + 1) // 4
    middle = ordered[cut : len(ordered) - cut]
    return {
        part: sum(values) / len(middle)
        for part, values in zip(PARTS, zip(*middle, strict=True), strict=False)
    }


def busiest(ranks: Sequence[dict[str, float]]) -> int:
    """The rank that the others wait for: steps take all of them equally long, and its own work the most of it."""
    own = [sum(parts.values()) - parts.get("communication", 0.0) for parts in ranks]
    return own.index(max(own))


def _network(module: LightningModule) -> torch.nn.Module:
    network = module.model
    assert isinstance(network, torch.nn.Module)
    return network
