"""What a sweep needs of the disk: what its runs leave, and the checkpoints while one is trained. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnbench.config import RunConfig
from bnbench.folders import missing
from bnbench.sweep.estimate import Estimate

CHECKPOINTS = 3  # of an unfinished run: two are kept (`training/checkpoint.py`), and a third is being written
SMALL_FILES = 100_000  # bytes of record, curve.csv and epochs.csv; W&B's own files come on top
LOOK_BYTES = 150  # of a look at a layer, in health.csv, and as many in each checkpoint: three rows
STAGES = 10  # as many rows again are of no layer: gradients of the network's parts


@dataclass(frozen=True)
class Disk:
    """Bytes. `kept` is what runs leave for good, `checkpoints` what is there while they are trained, `free` what the
    disk of their folder has. `unknown` runs are in neither: nobody has counted their parameters."""

    kept: int
    checkpoints: int
    free: int
    unknown: int

    @property
    def needed(self) -> int:
        return self.kept + self.checkpoints

    @property
    def is_short(self) -> bool:
        return self.needed > self.free


def disk_needs(todo: Sequence[tuple[RunConfig, Estimate | None]], worlds: int) -> Disk:
    """Of runs with what earlier ones tell of their networks, `worlds` of them trained at a time."""
    known = [(run, told) for run, told in todo if told is not None and told.params is not None]
    largest = sorted((checkpoint_bytes(run, told) for run, told in known), reverse=True)
    return Disk(
        kept=sum(
            SMALL_FILES + health_bytes(run, told) + (_weights(run, told) if run.trainer.save_weights else 0)
            for run, told in known
        ),
        checkpoints=CHECKPOINTS * sum(largest[:worlds]),
        free=_free(Path(todo[0][0].dir)),
        unknown=len(todo) - len(known),
    )


def checkpoint_bytes(run: RunConfig, told: Estimate) -> int:
    """Of one checkpoint: weights, what the optimizer keeps for each of them, their average, and health so far."""
    slots = 2 if run.optim.name == "adamw" else int(bool(run.optim.momentum))
    return _weights(run, told) * (1 + slots + (run.recipe.ema is not None)) + health_bytes(run, told)


def health_bytes(run: RunConfig, told: Estimate) -> int:
    """Of health.csv at a run's end."""
    every = run.measure.health_every
    looks = 0 if every is None else run.epochs * (told.train_images // run.global_batch) // every
    return looks * LOOK_BYTES * (told.layers + STAGES)


def _weights(run: RunConfig, told: Estimate) -> int:
    return _word(run) * (told.params or 0)


def _word(run: RunConfig) -> int:
    return 8 if run.trainer.precision == "fp64" else 4


def _free(folder: Path) -> int:
    """On the disk of a folder that may have to be made."""
    absent = missing(folder)
    return shutil.disk_usage(absent[-1].parent if absent else folder).free
