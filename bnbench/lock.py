"""One process at a time trains a run: ranks may outlive their starter, and a sweep may be started twice. No torch.

Nor do two download one data set into one folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

NAME = ".lock"
NO_LOCKS = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
)  # a file system without them: as if there were no others
TRIES = 10  # on NFS, where a file that another host has removed is stale


class Lock:
    """The right to write into a folder, which ends with this process at the latest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None

    def take(self) -> bool:
        """False if another process has it. PermissionError if its file is another user's."""
        tries = TRIES
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _locked(file, fcntl.LOCK_EX):
                    return False
                if self._is_the_path(file):
                    self._file = file
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return True
                tries -= 1
                if error.errno != errno.ESTALE or not tries:
                    raise
            finally:
                if self._file is None:
                    os.close(file)
        return True

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


class RunLock(Lock):
    def take(self) -> bool:
        """ValueError if another user has it."""
        try:
            return super().take()
        except PermissionError as error:
            raise ValueError(
                f"{self.path} cannot be opened ({error.strerror}): another user trains, or has trained, this run; "
                "choose another dir=... or name=..."
            ) from None


def is_taken(folder: Path) -> bool:
    """Whether a process has the lock of a run's folder, or another user may have. Leaves no trace."""
    try:
        file = os.open(folder / NAME, os.O_RDWR)
    except PermissionError:
        return True
    except OSError:
        return False
    try:
        return not _locked(file, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno in (*NO_LOCKS, errno.ESTALE):  # the last: removed by the one who had it
            return False
        raise
    finally:
        os.close(file)


def _locked(file: int, kind: int) -> bool:
    """Whether this process has the lock now. NFS says EACCES of what another has."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
