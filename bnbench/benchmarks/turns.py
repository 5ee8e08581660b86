"""Several pieces of work in turns, each going on where it stopped: what slows the machine down slows all of them.

No torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")
PassOn = Callable[[], None]


class _AbandonedError(BaseException):
    """Another one failed: what waits for its turn ends. No Exception, so that nothing between takes it for its own."""


class _Baton:
    """Who has the turn: in the order of `names`, whoever is not done; the others wait."""

    def __init__(self, names: list[str]) -> None:
        self._waiting = names  # the first one has the turn
        self._moved = threading.Condition()
        self._failed = False

    def wait(self, name: str) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._failed or self._waiting[0] == name)
            if self._failed:
                raise _AbandonedError

    def pass_on(self, name: str) -> None:
        with self._moved:
            self._waiting.append(self._waiting.pop(0))
            self._moved.notify_all()
        self.wait(name)

    def leave(self, failed: bool) -> None:
        with self._moved:
            self._waiting.pop(0)
            self._failed = self._failed or failed
            self._moved.notify_all()


def take_turns(work: Mapping[str, Callable[[PassOn], Result]], here: str) -> dict[str, Result]:
    """What each returns. Each runs in a thread, `here` in this one, from the first on, until it calls what it is given,
    which comes back once all others did so too or have ended. Raises what the first to fail raised; the others end."""
    baton, results, errors = _Baton(list(work)), dict[str, Result](), list[BaseException]()

    def one(name: str) -> None:
        try:
            baton.wait(name)
        except _AbandonedError:
            return
        failed = True
        try:
            results[name] = work[name](lambda: baton.pass_on(name))
            failed = False
        except _AbandonedError:
            pass
        except BaseException as error:  # raised anew in the thread that asked
            errors.append(error)
        finally:
            baton.leave(failed)

    threads = [threading.Thread(target=one, args=(name,), name=name) for name in work if name != here]
    for thread in threads:
        thread.start()
    one(here)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {name: results[name] for name in work}
