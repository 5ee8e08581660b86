"""The files of runs as they were read before, in one Parquet file: a network takes minutes for thousands."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from bnbench.records import write_atomic


class Files:
    """Reads small text files, and those that are unchanged (by size and time of change) from the cache."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache
        self._known: dict[str, tuple[int, int, str]] = {}
        self._used: dict[str, tuple[int, int, str]] = {}
        self._here = str(Path.cwd())
        self.read_anew = 0
        if cache is not None and cache.exists():
            self._known = _load(cache)

    def read(self, path: Path) -> str:
        """Raises OSError, or UnicodeDecodeError, as reading it does."""
        name = os.path.join(self._here, path)  # noqa: PTH118 - of many thousands
        if name in self._used:
            return self._used[name][2]
        state = path.stat()
        found = self._known.get(name)
        if found is None or found[:2] != (state.st_mtime_ns, state.st_size):
            found = (state.st_mtime_ns, state.st_size, path.read_text(encoding="utf-8"))
            self.read_anew += 1
        self._used[name] = found
        return found[2]

    def save(self) -> None:
        """Keep what was read for the next time, if anything was new; raises OSError where it cannot be written."""
        if self.cache is None or (not self.read_anew and len(self._used) == len(self._known)):
            return
        import polars as pl

        names = list(self._used)
        columns: dict[str, Any] = {"path": names}
        for index, key in enumerate(("mtime_ns", "size", "text")):
            columns[key] = [self._used[name][index] for name in names]
        out = io.BytesIO()
        pl.DataFrame(columns).write_parquet(out, compression="zstd")
        write_atomic(self.cache, out.getvalue())


def _load(cache: Path) -> dict[str, tuple[int, int, str]]:
    """What a cache holds; nothing, where it is broken or another version's: it is only a cache."""
    import polars as pl

    with contextlib.suppress(OSError, pl.exceptions.PolarsError, ValueError):
        table = pl.read_parquet(cache, columns=["path", "mtime_ns", "size", "text"])
        return {path: (mtime, size, text) for path, mtime, size, text in table.iter_rows()}
    return {}
