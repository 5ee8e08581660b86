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
    """`<run>/checkpoints/step-<n>.<maker>.<digest>.ckpt`; the digest is of the file's bytes. Written by rank 0, read by
    all.

    `maker` tells apart what would not go on from each other's checkpoints: other code, other settings beside the
    run's identity. A file that cannot be written is a warning, not the end of the run: `problem` says why.
    """

    def __init__(self, run_folder: Path, maker: str) -> None:
        self.folder, self.maker = run_folder / FOLDER, maker
        self.problem: str | None = None

    def path(self, step: int) -> str:
        """Where a checkpoint of this step is asked to go: the digest is not known yet."""
        return str(self.folder / f"step-{step:08d}.{self.maker}")

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
            for old in self._mine()[KEPT:]:
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
        """The last checkpoint that is whole and of this maker, and what is said of those that are passed over.

        Broken ones are removed: as the newest by their step they would take the place of whole ones.
        """
        others = sorted(
            {path.name for path in self.folder.glob(f"step-*{SUFFIX}")} - {p.name for p in self._mine()}
        )
        remarks = [
            f"{name} is passed over: other code, hardware or settings (measure, evals_per_epoch, trainer.log_every) "
            "made it"
            for name in others
        ]
        for path in self._mine():
            try:
                if path.name.split(".")[2] == _digest(path.read_bytes()):
                    return path, remarks
            except OSError as error:
                remarks.append(f"{path.name} is passed over: {error.strerror or error}")
                continue
            remarks.append(f"{path.name} is passed over: its bytes are not those that were written")
            path.unlink(missing_ok=True)
        return None, remarks

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mine(self) -> list[Path]:
        """From the newest to the oldest."""
        return sorted(self.folder.glob(f"step-*.{self.maker}.*{SUFFIX}"), reverse=True)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
