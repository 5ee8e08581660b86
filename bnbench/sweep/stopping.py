"""Asked to stop: what a scheduler sends before it takes the machine away, heard and not obeyed at once. No torch."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bnbench.config import RunConfig

# SLURM: TERM on preemption, `--signal`'s choice ahead of a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StoppedError(Exception):
    """Asked to stop where there is nothing to save."""


class StopRequest:
    """Within it the first of `SIGNALS` sets `asked`, the next does what it did before."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StoppedError within it, or if asked before: for what takes seconds and has nothing to save."""
        self._at_once = True
        try:
            if self.asked:
                raise StoppedError
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        if self._at_once:
            raise StoppedError

    def _restore(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)


def deadline(config: RunConfig) -> float:
    """When a run that starts now has had its time, by the monotonic clock."""
    limit = config.trainer.time_limit_minutes
    return math.inf if limit is None else time.monotonic() + 60 * limit


def leave_it_to_the_starter() -> None:
    """For a rank that bnbench started: a signal to the whole group reaches the starter too, which tells the ranks."""
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
