"""The record that a run leaves: the only truth that reports read. No torch.

One `record.json` per run folder, written whole or not at all; beside it its series: `curve.csv` (training, in
windows of steps), `epochs.csv` (evaluations), `health.csv`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

SCHEMA: Final = 1
RECORD = "record.json"
EPOCHS = "epochs.csv"
CURVE = "curve.csv"
HEALTH = "health.csv"

Status = Literal["completed", "diverged", "oom", "timeout", "preempted", "failed"]
FINISHED: tuple[Status, ...] = ("completed", "diverged")  # running it again would give the same
BROKEN: tuple[Status, ...] = ("failed", "oom", "timeout")
FOREIGN = "of another schema"  # what a run is called whose record another bnbench wrote: it is kept


@dataclass
class Record:
    """Schema 1. `identity` defines the run; `config` is what was asked; the rest is what came of it.

    `metrics` holds `final_val_error` (percent), `final_val_loss`, `train_error` (percent), `train_loss`
    and `params`; a value that does not exist (a diverged run's error) is null.
    `health` holds the interval in steps (`every`), and of each signal of `health.csv` the median at each place over
    the second half of its measurements.
    `timings` is in seconds, `images_per_s` over all ranks.
    `memory` holds `peak_bytes` of the rank that held the most, since this attempt's start, and their `kind`
    (`training/memory.py`); empty where the run did not come to its end.
    `speed` is of a typical step (`training/callbacks/speed.py`): `looks`, at how many it was looked; `step_ms` and
    `parts_ms` (data_wait, forward, backward, communication, optimizer, other: they add up to it), means over the looks
    in the middle half, on the `rank` with the most work of its own, for which the others wait; `flops_per_step` of
    one rank (matrix products and convolutions), `achieved_flops_per_s` = that by `step_ms`, `peak_flops_per_s` of
    the device at the run's precision (null: unknown, or a CPU) and `mfu`, their ratio; `collectives` of one step,
    owner (norm, gradients, other) -> kind -> `count` and `bytes` that a rank puts in. Null what a run was too short
    for; empty with `measure.speed_every=null`, and where the run did not come to its end.
    """

    __pydantic_config__: ClassVar = {"extra": "allow"}  # a newer writer may add; what is required is required
    schema: Literal[1]
    id: str
    name: str
    identity: dict[str, Any]
    status: Status
    config: dict[str, Any]
    metrics: dict[str, Any]
    timings: dict[str, Any]
    provenance: dict[str, Any]
    error: str | None = None
    norm_swap: dict[str, Any] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    wandb: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def digest(identity: Mapping[str, Any], length: int = 8) -> str:
    """A short hexadecimal name for an identity, independent of key order."""
    return short_name(canonical(identity), length)


def short_name(text: str, length: int = 8) -> str:
    """The digest of an identity that is canonical text already."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def canonical(identity: Mapping[str, Any]) -> str:
    """An identity as JSON, the same for equal ones: keys sorted, no spaces."""
    return _CANONICAL.encode(identity)


def cell_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without its seed: what the runs of one cell share."""
    return {key: value for key, value in identity.items() if key != "seed"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; a list stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """What nested dicts hold at a dotted key; None where there is nothing. `flatten` for one key."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_record(folder: Path, record: Record) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")
    return path


class SchemaError(ValueError):
    """A record of another schema than this bnbench reads: its `schema`."""

    def __init__(self, path: Path, schema: object) -> None:
        super().__init__(f"{path}: schema {schema!r}, and this bnbench reads schema {SCHEMA}")
        self.schema = schema


@functools.cache
def _adapter() -> Any:
    import pydantic

    return pydantic.TypeAdapter(Record)


def read_record(path: Path) -> Record:
    """The record in a file. ValueError with one line if it is broken, foreign or of another schema."""
    try:
        return parse_record(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None


def parse_record(text: str | bytes, path: Path) -> Record:
    """The record in what a file holds; as `read_record`."""
    import pydantic

    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict) or "schema" not in values:
        raise ValueError(f"{path}: no bnbench record (it has no schema)")
    if values["schema"] != SCHEMA:
        raise SchemaError(path, values["schema"])
    try:
        return _adapter().validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {key}: {first['msg']}") from None


def find_records(root: Path) -> Iterator[Path]:
    """Every record file below a folder, in a stable order."""
    return iter(find_files(root, RECORD))


def find_files(root: Path, name: str) -> list[Path]:
    """Every file of that name below a folder, sorted.

    Not by rglob: it ends where a folder goes while it looks, as checkpoints of a sweep that is under way do.
    """
    found = [folder for folder, _, files in os.walk(root) if name in files]
    found.sort(key=lambda folder: folder.split("/"))  # as paths sort, but faster
    return [Path(folder, name) for folder in found]


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds the record of a run that need not be trained again."""
    return finished_status(folder) is not None


def finished_status(folder: Path) -> str | None:
    """The status of the finished run that a folder holds, or FOREIGN; None if it holds none."""
    path = folder / RECORD
    try:
        status = read_record(path).status if path.exists() else None
    except SchemaError:
        return FOREIGN
    except ValueError:
        return None
    return status if status in FINISHED else None
