"""One process at a time trains a run: ranks may outlive their starter, and a user may start a sweep twice."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

NAME = ".lock"
PATIENCE_SECONDS = 30.0  # an abandoned rank lives until the end of its window
LOOKING_SECONDS = 0.2


class RunLock:
    """The right to write into a run's folder, which ends with this process at the latest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None

    def take(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Raise ValueError if another process still has it after so many seconds."""
        until = time.monotonic() + seconds
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_the_path(file):
                    self._file = file
                    return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(
                        f"{self.path.parent} is being trained by another process: wait until it has ended, or choose "
                        "another name=..."
                    ) from None
                time.sleep(LOOKING_SECONDS)
            except OSError:  # a file system without locks: as if there were no others
                return
            finally:
                if self._file is None:
                    os.close(file)

    def release(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self.path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)  # not by closing alone: forked children have the file open too
            os.close(file)

    def _is_the_path(self, file: int) -> bool:
        """Whether the file is still there by its name: the one who had it removed it."""
        try:
            return os.fstat(file).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False
