"""Every record under some folders, as one table of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench import catalog
from bnbench.analysis.files import Files
from bnbench.analysis.lr_range import is_range
from bnbench.records import (
    FINISHED,
    Record,
    canonical,
    cell_of,
    find_records,
    parse_record,
    short_name,
    value_at,
)

if TYPE_CHECKING:
    import polars as pl


Key = tuple[str, int]  # of a run: the identity of its cell, and its seed


@dataclass
class Collected:
    """What was found: `runs` has one row per run, `records` the record of each row in the same order.

    Columns of `runs`: id, cell (digest of the identity without its seed), name, model, norm, family, nbs
    (null for a norm that treats each image by itself), per_device_batch, global_batch, world_size, data (its name, or
    the title that a run gave it), precision, seed, status, val_error and train_error (percent), val_loss,
    images_per_s (over all ranks), step_ms, fit_seconds, peak_bytes, speed (the record's, as JSON), root (the folder it
    was found under), path, identity (that of the cell, as JSON). A number that a record lacks is null.
    `sides`: the same columns, with a row for each folder that holds a run; empty where there is one folder.
    `evidence` has the records of each claim: there a run counts that another folder holds too.
    `problems` has one line for each record that is not in the table or is incomplete.
    """

    runs: pl.DataFrame
    sides: pl.DataFrame
    records: list[Record] = field(default_factory=list)
    evidence: dict[str, list[Record]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def collect(roots: Sequence[Path], files: Files | None = None) -> Collected:
    """Read every record under the folders, through the cache of `files`.

    A record that cannot be used is listed, never fatal.
    Of two records of one run, a finished one is kept, else the first; those of two folders are `sides` as well.
    Raises ValueError where a folder does not exist, or no usable record is found.
    """
    import polars as pl

    files = files or Files()
    problems: list[str] = []
    kept: dict[Key, tuple[Path, Record, dict[str, Any]]] = {}
    cells: dict[str, dict[str, Any]] = {}
    evidence: dict[str, dict[Key, Record]] = {}
    sides: dict[tuple[str, Key], dict[str, Any]] = {}
    titles: dict[str, str] = {}  # of data, by its identity: the first that a run gave it
    named: list[tuple[str, dict[str, Any]]] = []
    for path, root in _record_paths(roots).items():
        try:
            record = parse_record(files.read(path), path)
            row = _row(record, path, cells) | {"root": str(root)}
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: not readable as JSON ({error})")
            continue
        except ValueError as error:
            problems.append(str(error))
            continue
        named.append((canonical(record.identity["data"]), row))
        if isinstance(title := _mapping(record.config, "data").get("title"), str):
            titles.setdefault(named[-1][0], title)
        key = row["identity"], row["seed"]
        claim = _claim(record)
        if claim is not None:
            known = evidence.setdefault(claim, {})
            if key not in known or (record.status in FINISHED and known[key].status not in FINISHED):
                known[key] = record
        side = sides.get((str(root), key))
        if side is None or (record.status in FINISHED and side["status"] not in FINISHED):
            sides[str(root), key] = row
        first = kept.get(key)
        if first is None:
            kept[key] = (path, record, row)
            continue
        better = record.status in FINISHED and first[1].status not in FINISHED
        if better:
            kept[key] = (path, record, row)
        if None not in (claim, _claim(first[1])) and claim != _claim(first[1]):
            continue  # each is evidence for a claim of its own
        if first[2]["root"] != row["root"]:
            continue  # side by side
        used, other = (path, first[0]) if better else (first[0], path)
        problems.append(f"{other}: the same run as {used}, which is used")
    if not kept:
        raise ValueError(_nothing(roots, problems))
    for path, record, row in kept.values():
        if record.status == "completed" and row["val_error"] is None and not is_range(record.identity):
            problems.append(f"{path}: completed without a final_val_error: not in the mean")
    _give_titles(named, titles)
    rows = [row for _, _, row in kept.values()]
    return Collected(
        pl.DataFrame(rows, schema=_schema()),
        pl.DataFrame(list(sides.values()) if len(roots) > 1 else [], schema=_schema()),
        [record for _, record, _ in kept.values()],
        {claim: list(found.values()) for claim, found in evidence.items()},
        problems,
    )


def _give_titles(named: Sequence[tuple[str, dict[str, Any]]], titles: Mapping[str, str]) -> None:
    """To the rows, each with the identity of its data; data of several names keep theirs beside one title."""
    names: dict[str, set[str]] = {}
    for data, row in named:
        names.setdefault(titles.get(data, row["data"]), set()).add(row["data"])
    for data, row in named:
        title = titles.get(data, row["data"])
        several = len(names[title]) > 1 and title != row["data"]
        row["data"] = f"{title} ({row['data']})" if several else title


def _claim(record: Record) -> str | None:
    claim = record.config.get("claim")
    return claim if isinstance(claim, str) else None


def _record_paths(roots: Sequence[Path]) -> dict[Path, Path]:
    """Each record's path with the root that it is below, the first of those that hold it."""
    paths: dict[Path, tuple[Path, Path]] = {}  # by real path: one folder may lie inside another
    for root in roots:
        if not root.is_dir():
            why = "is a file, not a folder" if root.exists() else "does not exist"
            raise ValueError(f"{root} {why}: name a folder with run folders in it, such as runs/<sweep>")
        real = root.resolve()  # find_records follows no links below it
        for path in find_records(root):
            below = path if len(roots) == 1 else real / path.relative_to(root)
            paths.setdefault(below, (path, root))
    return dict(paths.values())


def _nothing(roots: Sequence[Path], problems: Sequence[str]) -> str:
    where = ", ".join(map(str, roots))
    if problems:
        return f"no usable record under {where}: {len(problems)} cannot be used, the first: {problems[0]}"
    return f"no record.json under {where}: name a folder that `bnbench train` wrote, such as runs/<sweep>"


def _schema() -> dict[str, Any]:
    import polars as pl

    text, whole, real = pl.String, pl.Int64, pl.Float64
    columns: dict[str, Any] = {
        "id": text,
        "cell": text,
        "name": text,
        "model": text,
        "norm": text,
        "family": text,
    }
    columns |= {"nbs": whole, "per_device_batch": whole, "global_batch": whole, "world_size": whole}
    columns |= {"data": text, "precision": text, "seed": whole, "status": text}
    numbers = ("val_error", "val_loss", "train_error", "images_per_s", "step_ms", "fit_seconds", "peak_bytes")
    columns |= dict.fromkeys(numbers, real)
    return columns | dict.fromkeys(("speed", "root", "path", "identity"), text)


def _row(record: Record, path: Path, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row of `runs`; `cells` holds what runs of a cell share. ValueError if the identity lacks what each has."""
    cell = canonical(cell_of(record.identity))
    if cell not in cells:
        cells[cell] = _cell(record.identity, cell, path)
    return cells[cell] | {
        "id": record.id,
        "name": record.name,
        "seed": _known(record.identity, "seed", int, path),
        "status": record.status,
        "val_error": _number(record.metrics, "final_val_error"),
        "val_loss": _number(record.metrics, "final_val_loss"),
        "train_error": _number(record.metrics, "train_error"),
        "images_per_s": _number(record.timings, "images_per_s"),
        "step_ms": _number(record.timings, "step_ms"),
        "fit_seconds": _number(record.timings, "fit_seconds"),
        "peak_bytes": _number(record.memory, "peak_bytes"),
        "speed": json.dumps(speed) if (speed := getattr(record, "speed", None)) else None,
        "path": str(path),
    }


def _cell(identity: Mapping[str, Any], cell: str, path: Path) -> dict[str, Any]:
    """The columns that an identity without its seed settles, which as JSON is `cell`."""
    norm = _known(identity, "norm.name", str, path)
    nbs = None if identity.get("nbs") is None else _known(identity, "nbs", int, path)
    # A norm that this version does not list is still a result; its family shows in its NBS.
    info = catalog.NORMS.get(norm)
    family = info.family if info else "channel" if nbs is None else "batch"
    if norm == "frozen" and nbs is None:
        family = "channel"  # frozen from the start
    if family == "batch" and nbs is None:
        raise ValueError(f"{path}: identity.nbs is null, and {norm} shares statistics over images")
    # A label says what the numbers may not be read as: it goes wherever the data's name goes.
    data = "data.label" if "label" in _mapping(identity, "data") else "data.name"
    return {
        "cell": short_name(cell),
        "model": _known(identity, "model.name", str, path),
        "norm": norm,
        "family": family,
        "nbs": nbs if family == "batch" else None,
        **{
            key: _known(identity, key, int, path)
            for key in ("per_device_batch", "global_batch", "world_size")
        },
        "data": _known(identity, data, str, path),
        "precision": _known(identity, "precision", str, path),
        "identity": cell,
    }


def _known(identity: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = value_at(identity, key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path}: identity.{key} is {value!r}, not of type {kind.__name__}")
    return value


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
