"""What a run's folder holds already: nothing, a finished run of this code or of another, a broken record. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bnbench.config import RunConfig
from bnbench.provenance import other_code
from bnbench.records import FINISHED, RECORD, SchemaError, read_record

Standing = Literal["missing", "finished", "broken"]


def standing(folder: Path) -> tuple[Standing, str]:
    """Beside "finished", the name of the other code that made it, if any; beside "broken", what is wrong."""
    path = folder / RECORD
    if not path.exists():
        return "missing", ""
    try:
        record = read_record(path)
    except SchemaError as error:
        return "finished", f"records of schema {error.schema!r}"
    except ValueError as error:
        return "broken", str(error)
    if record.status not in FINISHED:
        return "missing", ""
    return "finished", other_code(record.provenance) or ""


WORLDS = tuple(2**power for power in range(8))  # where a run without a checkpoint may have been begun


def begun_elsewhere(runs: Sequence[RunConfig]) -> list[str]:
    """A remark for each world size that unfinished runs were begun on, where these ask for another."""
    begun = {
        path.parent.name
        for folder in {run.dir for run in runs}
        for path in Path(folder).glob("*/checkpoints")
    }
    found: dict[int, int] = {}
    for run in runs if begun else ():
        if run.folder.name in begun or run.trainer.resume_world is not None:
            continue
        for size in WORLDS:
            try:
                asked = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, resume_world=size))
                other = asked.begun_elsewhere
            except ValueError:  # not the same training
                continue
            if other is not None and other.folder.name in begun:
                found[size] = found.get(size, 0) + 1
    return [
        f"{count} run(s) were begun on {size} rank(s): trainer.resume_world={size} goes on with them"
        for size, count in found.items()
    ]
