"""Thousands of made-up records, as large as real ones: `python -m tests.report.many_records FOLDER [RUNS]`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import sys
from pathlib import Path

from bnbench.records import EPOCHS, RECORD
from tests.records_factory import make_record

MODELS = ("resnet8", "resnet20", "resnet56", "densenet40", "vgg11")
NORMS = ("gn", "ln", "in", "bn", "brn", "gn+ws")
SIZES = (2, 4, 8, 16, 32, 64)
EPOCHS_RUN = 10
CONFIG = {  # as much text as what a real run was asked for
    group: {f"setting_{i}": None for i in range(size)}
    for group, size in {"model": 12, "norm": 18, "data": 16, "optim": 12, "trainer": 18, "logger": 9}.items()
}


def write_many(root: Path, runs: int) -> None:
    """`runs` run folders with a record and its evaluations: models x norms x NBS, and seeds until there are enough."""
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
        lost = draw.random() < 0.01
        made = make_record(
            model=model,
            norm="gn" if norm == "gn+ws" else norm,
            norm_settings={"weight_standardization": True} if norm == "gn+ws" else None,
            nbs=nbs,
            seed=seed,
            error=error,
            status="diverged" if lost else "completed",
        )
        record = dataclasses.replace(
            made,
            config=made.config | CONFIG,
            timings=made.timings
            | {"step_ms": 30 + draw.gauss(0, 1), "setup_seconds": 1.0, "measure_seconds": 2.0},
            memory={"peak_bytes": 700_000_000 + draw.randrange(10_000_000), "kind": "resident"},
            norm_swap={"kind": norm, "replaced": 7, "notes": [f"a note of {i}" for i in range(20)]},
        )
        folder = root / f"{record.name}-{record.id}"
        folder.mkdir(parents=True)
        (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=1))
        rows = [
            "epoch,step,lr,train_loss,train_error,val_loss,val_error,train_seconds,val_seconds,images_per_s"
        ]
        for epoch in range(EPOCHS_RUN):
            left = 1 / (epoch + 1)
            now = f"{2 * left},{60 * left},{2 * left},{error + 40 * (left - 0.1)}"
            rows.append(f"{epoch},{16 * (epoch + 1)},0.1,{now},1.25,0.1,2000")
        (folder / EPOCHS).write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
