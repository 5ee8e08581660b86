"""Thousands of made-up records, as large as real ones: `python -m bnbench.benchmarks.many_records FOLDER [RUNS]`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from bnbench.provenance import code_digest
from bnbench.records import EPOCHS, RECORD, SCHEMA, Record, cell_of, digest

MODELS = ("resnet8", "resnet20", "resnet56", "densenet40", "vgg11")
NORMS = ("gn", "ln", "in", "bn", "brn", "gn+ws")
SIZES = (2, 4, 8, 16, 32, 64)
EPOCHS_RUN = 10
CONFIG = {  # as much text as what a real run was asked for
    group: {f"setting_{i}": None for i in range(size)}
    for group, size in {"model": 12, "norm": 18, "data": 16, "optim": 12, "trainer": 18, "logger": 9}.items()
}


def write_many(root: Path, runs: int) -> None:
    """`runs` run folders with a record and its evaluations: models x norms x NBS, and seeds until there are enough.

    Errors fall with NBS and grow with the model, with noise; one run in a hundred diverged. The same each time.
    """
    draw = random.Random(0)
    cells = [
        (model, norm, nbs)
        for model, norm in itertools.product(MODELS, NORMS)
        for nbs in (SIZES if norm in ("bn", "brn") else (None,))
    ]
    for number in range(runs):
        seed, place = divmod(number, len(cells))
        model, norm, nbs = cells[place]
        error = 10 + 2 * MODELS.index(model) + (12 / nbs if nbs else 1) + draw.gauss(0, 0.5)
        record = _record(model, norm, nbs, seed, error, draw)
        folder = root / f"{record.name}-{record.id}"
        folder.mkdir(parents=True, exist_ok=True)
        # Not write_record, which waits for the disk after each.
        (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=1))
        (folder / EPOCHS).write_text(_epochs(error))


def _record(model: str, norm: str, nbs: int | None, seed: int, error: float, draw: random.Random) -> Record:
    kind = norm.removesuffix("+ws")
    settings: dict[str, Any] = {"num_groups": 8} if kind == "gn" else {"statistics": "mean", "momentum": 0.1}
    if kind != norm:
        settings["weight_standardization"] = True
    identity: dict[str, Any] = {
        "model": {"name": model, "width": 16, "stem_stride": 1},
        "norm": {"name": kind, "eps": 1e-5, **settings},
        "nbs": nbs,
        "per_device_batch": 64,
        "global_batch": 64,
        "world_size": 1,
        "data": {"name": "digits", "augment": "none", "max_train": 1024},
        "recipe": {"epochs": EPOCHS_RUN, "name": "sgd", "lr": 0.1, "warmup_epochs": 1},
        "precision": "fp32",
        "seed": seed,
    }
    lost = draw.random() < 0.01
    metrics = {"final_val_error": error, "final_val_loss": 0.5, "train_error": 8.0}
    return Record(
        schema=SCHEMA,
        id=digest(identity),
        name=f"{model}-{norm}{'' if nbs is None else f'-nbs{nbs}'}-s{seed}-{digest(cell_of(identity), 4)}",
        identity=identity,
        status="diverged" if lost else "completed",
        config=CONFIG,
        metrics=dict.fromkeys(metrics) if lost else metrics,
        timings={
            "images_per_s": 2000.0,
            "fit_seconds": 12.5,
            "step_ms": 30 + draw.gauss(0, 1),
            "setup_seconds": 1.0,
            "measure_seconds": 2.0,
        },
        memory={"peak_bytes": 700_000_000 + draw.randrange(10_000_000), "kind": "resident"},
        norm_swap={"kind": norm, "replaced": 7, "notes": [f"a note of {i}" for i in range(20)]},
        provenance={
            "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
            "code": code_digest(),
            "versions": {"bnbench": "0.1.0", "torch": "2.11.0"},
            "host": {"name": "a-made-up-host", "cpu": "a made-up CPU", "cores": 2},
            "device": {"kind": "cpu"},
            "written": "2026-01-01T00:00:00+00:00",
            "slurm_job": None,
            "data": {"train_images": 1024, "classes": 10},
        },
        error="made up: diverged" if lost else None,
    )


def _epochs(error: float) -> str:
    """epochs.csv of a run that ends at this error."""
    rows = ["epoch,step,lr,train_loss,train_error,val_loss,val_error,train_seconds,val_seconds,images_per_s"]
    for epoch in range(EPOCHS_RUN):
        left = 1 / (epoch + 1)
        now = f"{2 * left},{60 * left},{2 * left},{error + 40 * (left - 0.1)}"
        rows.append(f"{epoch},{16 * (epoch + 1)},0.1,{now},1.25,0.1,2000")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
