"""Checkpoints of an unfinished run on disk: written whole or not at all, told from broken ones, the last few kept."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from bnbench.records import write_atomic

FOLDER = "checkpoints"
KEPT = 2  # the last one may turn out to be broken
SUFFIX = ".ckpt"

log = logging.getLogger(__name__)


class CheckpointFolder(CheckpointIO):
    """`<run>/checkpoints/step-<n>.<digest>.ckpt`; the digest is of the file's bytes. Written by rank 0, read by all.

    A file that cannot be written is a warning, not the end of the run: `problem` says why.
    """

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / FOLDER
        self.problem: str | None = None

    def path(self, step: int) -> str:
        """Where a checkpoint of this step is asked to go: the digest is not known yet."""
        return str(self.folder / f"step-{step:08d}")

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getbuffer()
        wanted = Path(path)
        target = wanted.with_name(f"{wanted.name}.{_digest(data)}{SUFFIX}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
            for old in self._newest_first()[KEPT:]:
                old.unlink(missing_ok=True)
            self.problem = None
        except OSError as error:
            self.problem = f"{target} cannot be written: {error.strerror or error}"
            log.warning("no checkpoint: %s", self.problem)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The last checkpoint that is whole, and what is said of later ones that are not."""
        remarks = []
        for path in self._newest_first():
            try:
                whole = path.name.split(".")[1] == _digest(path.read_bytes())
            except OSError as error:
                remarks.append(f"{path.name} is passed over: {error.strerror or error}")
                continue
            if whole:
                return path, remarks
            remarks.append(f"{path.name} is passed over: its bytes are not those that were written")
        return None, remarks

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-*.*{SUFFIX}"), reverse=True)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
