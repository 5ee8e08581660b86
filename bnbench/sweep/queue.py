"""The runs that a sweep has still to train, where other processes may be at work in the same folder. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bnbench.config import RunConfig
from bnbench.lock import is_taken
from bnbench.records import finished_status
from bnbench.sweep.outcome import Outcome

PATIENCE_SECONDS = 30.0  # ranks whose starter was killed live until the end of a window, and hold their run


class Queue:
    """In the order asked, but for what another process trains now: that comes last, and is left to it in the end.

    So the same command, started several times, shares its runs out. `outcomes` are of those that others trained or
    have in their hands.
    """

    def __init__(self, todo: Sequence[RunConfig], patience: float | None = None) -> None:
        self.outcomes: list[Outcome] = []
        self._waiting = list(todo)
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._until: float | None = None

    def take(self) -> RunConfig | None:
        """The next run that nobody trains; None if there is none now."""
        for config in [*self._waiting]:
            status = finished_status(config.folder)
            if status is not None:
                self._waiting.remove(config)
                self.outcomes.append(Outcome(config, status))
            elif not is_taken(config.folder):
                self._waiting.remove(config)
                self._until = None
                return config
        return None

    def put_back(self, config: RunConfig) -> None:
        """It was taken by another process, or not begun."""
        self._waiting.append(config)

    def is_over(self) -> bool:
        """Call it when `take` gave None and nothing is being trained here: whether to wait no longer."""
        now = time.monotonic()
        self._until = self._until or now + self._patience
        if self._waiting and now < self._until:
            return False
        self.outcomes += [Outcome(config, "elsewhere") for config in self._waiting]
        self._waiting = []
        return True
