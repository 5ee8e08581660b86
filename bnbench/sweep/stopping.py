"""Asked to stop: what a scheduler sends before it takes the machine away, and Ctrl-C; heard and not obeyed at once.

No torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bnbench.config import RunConfig
from bnbench.signals import SIGNALS, ignore

STOPPED = 128 + signal.SIGTERM  # the exit code, as a shell says it of what a signal ended
INTERRUPTED = 128 + signal.SIGINT


class StoppedError(Exception):
    """Asked to stop where there is nothing to save."""


class StopRequest:
    """Within it the first of `SIGNALS` sets `asked`, the next does what it did before; it may be entered twice."""

    def __init__(self) -> None:
        self.asked = False
        self.exit_code = STOPPED
        self._at_once = False
        self._depth = 0
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    @property
    def remark(self) -> str:
        again = "; Ctrl-C again ends it at once" if self.exit_code == INTERRUPTED else ""
        return f"Asked to stop: what is being trained makes a checkpoint first{again}."

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
        if self._depth == 0:
            nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
            self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        self._depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # What a terminal sends is a person's; every other signal is a scheduler's.
        self.exit_code = INTERRUPTED if number == signal.SIGINT else STOPPED
        if number == signal.SIGHUP:
            self._leave_terminals()
        self._restore()
        if self._at_once:
            raise StoppedError

    def _leave_terminals(self) -> None:
        """What is printed from here on goes nowhere: to write to a terminal that is gone is an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)

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
    ignore(SIGNALS)
