"""A loader that is watched: how long training waited inside it for the next batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .loader import Batch, TrainLoader
from .streaming import StreamedTrainLoader


def _nothing(part: str) -> None:
    pass


class WatchedLoader:
    """A train loader as the training loop sees it; `waited` has the seconds that each epoch spent in its next().

    They are the host's. For a set in the CPU's memory they are the cost of making the batches; on a GPU the
    making is queued behind the model's work and costs the host little; for streamed images they are what the
    workers and the copy to the device left to wait for. `begin` hears when a wait begins ("data_wait") and when
    something else does ("other").
    """

    def __init__(self, loader: TrainLoader | StreamedTrainLoader) -> None:
        self.loader = loader
        self.waited: dict[int, float] = {}
        self.begin: Callable[[str], None] = _nothing
        self.first = 0  # of the next epoch's batches: those before it were trained on before this run went on

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> WatchedLoader:
        return self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        first, self.first = self.first, 0
        clock, batches, epoch = time.perf_counter, self.loader.batches(first), self.loader.epoch
        self.waited.setdefault(epoch, 0.0)
        while True:
            asked = clock()
            self.begin("data_wait")
            batch = next(batches, None)
            self.begin("other")
            self.waited[epoch] += clock() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"waited": dict(self.waited)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.waited = dict(state["waited"])

    def share(self, train_seconds: Mapping[int, float]) -> float | None:
        """The median epoch's share of its training time, without the first where there are more; None without one.

        `train_seconds` has the epochs that came to their end. The first one waits for workers to start.
        """
        epochs = sorted(train_seconds)
        shares = [self.waited[epoch] / train_seconds[epoch] for epoch in epochs[1:] or epochs]
        return statistics.median(shares) if shares else None
