"""Made-up records, written the way a run writes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.provenance import code_digest
from bnbench.records import Record, Status, cell_of, digest, write_record


def make_record(
    *,
    model: str = "resnet8",
    norm: str = "bn",
    nbs: int | None = 64,
    seed: int = 0,
    error: float | None = 10.0,
    status: Status = "completed",
    world_size: int = 1,
    global_batch: int = 64,
    data: str = "digits",
    lr: float = 0.1,
    norm_settings: dict[str, Any] | None = None,
    images_per_s: float | None = 2000.0,
    claim: str | None = None,
    metrics: dict[str, Any] | None = None,
    identity_of: dict[str, Any] | None = None,
    target_error: float | None = None,
) -> Record:
    """A record of schema 1, complete in what reports read; `error` in percent.

    `metrics` are kept whatever the status; `identity_of` adds to the identity, by dotted key.
    """
    defaults: dict[str, Any] = {"num_groups": 8} if norm == "gn" else {"statistics": "mean", "momentum": 0.1}
    settings = defaults | {"eps": 1e-5} | (norm_settings or {})
    identity: dict[str, Any] = {
        "model": {"name": model, "width": 16, "stem_stride": 1},
        "norm": {"name": norm, **settings},
        "nbs": nbs,
        "per_device_batch": global_batch // world_size,
        "global_batch": global_batch,
        "world_size": world_size,
        "data": {"name": data, "augment": "none", "max_train": 1024},
        "recipe": {"epochs": 3, "name": "sgd", "lr": lr, "warmup_epochs": 1},
        "precision": "fp32",
        "seed": seed,
    }
    for key, value in (identity_of or {}).items():
        inner: Any = identity
        *groups, last = key.split(".")
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    finished = status == "completed"
    return Record(
        schema=1,
        id=digest(identity),
        name=f"{model}-{norm}{'' if nbs is None else f'-nbs{nbs}'}-s{seed}-{digest(cell_of(identity), 4)}",
        identity=identity,
        status=status,
        config={} if claim is None else {"claim": claim, "target_error": target_error},
        metrics={
            "final_val_error": error if finished else None,
            "final_val_loss": 0.5 if finished else None,
            "train_error": 8.0 if finished else None,
            **(metrics or {}),
        },
        timings={"images_per_s": images_per_s, "fit_seconds": 12.5} if images_per_s else {},
        provenance={
            "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
            "code": code_digest(),
            "versions": {"bnbench": "0.1.0", "torch": "2.11.0"},
            "host": {"name": "a-made-up-host", "cpu": "a made-up CPU", "cores": 2},
            "device": {"kind": "cpu"},
            "written": f"2026-01-01T00:00:{seed:02}+00:00",
            "slurm_job": None,
            "data": {"train_images": 1024, "classes": 10},
        },
        error=None if finished else f"made up: {status}",
    )


def record_of(
    run: RunConfig,
    *,
    fit: float = 10.0,
    setup: float = 0.0,
    measure: float = 0.0,
    status: Status = "completed",
    day: int = 1,
    device: tuple[str, str | None] = ("cpu", None),
) -> Record:
    """The record that this run could have left, with the seconds that it took."""
    made = make_record(status=status)
    return dataclasses.replace(
        made,
        id=digest(run.identity()),
        name=run.run_name,
        identity=json.loads(json.dumps(run.identity())),
        config=json.loads(json.dumps(dataclasses.asdict(run))),
        timings={"setup_seconds": setup, "fit_seconds": fit, "measure_seconds": measure},
        provenance=made.provenance
        | {"device": {"type": device[0], "name": device[1]}, "written": f"2026-01-{day:02}T00:00:00+00:00"},
    )


def write(root: Path, record: Record) -> Path:
    """Write a record into its own run folder below `root`; returns the file."""
    return write_record(root / f"{record.name}-{record.id}", record)


def write_quickstart(root: Path) -> list[Path]:
    """BN at NBS 2, 4, 16, 64 and GN, three seeds each, with plausible numbers and one diverged run."""
    errors = {2: (31.0, 34.5, 29.8), 4: (19.0, 20.2, 18.1), 16: (12.4, 12.0, 13.1), 64: (11.8, 12.2, 11.1)}
    records = [
        make_record(nbs=nbs, seed=seed, error=error, images_per_s=1500 + 8 * nbs + seed)
        for nbs, values in errors.items()
        for seed, error in enumerate(values)
    ]
    records[2] = make_record(nbs=2, seed=2, status="diverged")
    records += [make_record(norm="gn", nbs=None, seed=s, error=e) for s, e in enumerate((13.0, 13.9, 12.7))]
    return [write(root, record) for record in records]
