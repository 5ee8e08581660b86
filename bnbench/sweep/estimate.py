"""How long runs will take, by the records of earlier ones: without a record that fits, no number. No torch."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnbench.config import RunConfig
from bnbench.records import Record, cell_of, digest

PROBED = "probe"  # as a source
NEWEST = 5  # records under a median: the code and the machine of older ones may be others
ALIKE = ("model", "data", "world_size", "per_device_batch", "precision")
WATCHED: tuple[str, ...] = ("measure", "evals_per_epoch")  # of no cell, and yet they take time


@dataclass(frozen=True)
class Device:
    """What an earlier run was trained on, as far as its record tells."""

    type: str | None
    name: str | None

    def __str__(self) -> str:
        return f"{self.name or 'an unnamed device'} ({self.type or 'of unknown type'})"


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run from its setup to its record, and the earlier runs that they are the median of.

    `of_cell`: those are runs of the very cell, or a probe of it. `peak_bytes`, of the rank with the most, is the
    largest among them; `params` are the network's; None where they do not tell. So are its norm `layers`, and
    `train_images` an epoch's; 0 where they do not tell.
    """

    seconds: float
    source: str
    of_cell: bool = field(default=False, compare=False)
    peak_bytes: int | None = None
    params: int | None = None
    layers: int = field(default=0, compare=False)
    train_images: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Estimates:
    """One per cell, None where no record fits; all by records of one device, so that they add up."""

    device: Device | None
    cells: list[Estimate | None]


@dataclass(frozen=True)
class _Work:
    """What a run's time follows from: `kind` up to its norm and recipe, which `cell` has too."""

    cell: str
    kind: str
    device_batch: int
    execution: str | None  # None where an early record does not tell
    norm: str
    nbs: int | None
    epochs: int
    watched: Mapping[str, Any]


@dataclass(frozen=True)
class _Past:
    """What a record tells of time. `fit` grows with the epochs; `rest`, setup and final measures, does not."""

    work: _Work
    device: Device
    written: str
    fit: float
    rest: float
    peak_bytes: int | None
    params: int | None
    layers: int
    train_images: int
    is_probe: bool


def estimate(cells: Sequence[RunConfig], records: Iterable[Record]) -> Estimates:
    """Each cell (any run of it stands for all) by the records of that cell, else by those of the nearest like it.

    Only completed runs tell: one that diverged or broke ended early. Of several devices that of the newest record
    which fits any cell is the one that counts.
    """
    past = sorted(filter(None, map(_past, records)), key=lambda p: p.written, reverse=True)
    asked = [_asked(cell) for cell in cells]
    alike = [
        [p for p in past if _is_alike(work, p.work) and _may_train(cell, p.device)]
        for cell, work in zip(cells, asked, strict=True)
    ]
    fits = [p for found in alike for p in found]
    if not fits:
        return Estimates(None, [None] * len(cells))
    device = max(fits, key=lambda p: p.written).device
    here = [[p for p in found if p.device == device] for found in alike]
    return Estimates(device, [_estimate(work, found) for work, found in zip(asked, here, strict=True)])


def _estimate(mine: _Work, alike: Sequence[_Past]) -> Estimate | None:
    """`alike` from the newest to the oldest."""
    same = [p for p in alike if p.work.cell == mine.cell and _watches_alike(mine, p.work)][:NEWEST]
    if same:
        count = f"{len(same)} run{'s' if len(same) > 1 else ''} of this cell"
        source = PROBED if any(p.is_probe for p in same) else count
        return Estimate(statistics.median(p.fit + p.rest for p in same), source, True, *_size(same))
    if not alike:
        return None
    nearest = min(alike, key=lambda p: _distance(mine, p.work)).work
    group = [p for p in alike if p.work == nearest][:NEWEST]
    seconds = statistics.median(p.fit * mine.epochs / nearest.epochs + p.rest for p in group)
    scaled = "" if nearest.epochs == mine.epochs else f", {nearest.epochs} epochs"
    name = nearest.norm.rpartition(".")[2]
    source = f"like {name}{'' if nearest.nbs is None else f'@{nearest.nbs}'}{scaled}"
    return Estimate(seconds, source, False, *_size(group))


def _size(past: Sequence[_Past]) -> tuple[int | None, int | None, int, int]:
    """The largest peak, and what the newest record that counts parameters tells of the network and its data."""
    peak = max((p.peak_bytes for p in past if p.peak_bytes is not None), default=None)
    newest = next((p for p in past if p.params is not None), past[0])
    return peak, newest.params, newest.layers, newest.train_images


def _asked(run: RunConfig) -> _Work:
    watched = {"measure": dataclasses.asdict(run.measure), "evals_per_epoch": run.evals_per_epoch}
    work = _work(run.identity(), watched)
    assert work is not None
    return work


def _past(record: Record) -> _Past | None:
    """None for a record that tells nothing of time, or is not complete in what time follows from."""
    watched: dict[str, Any] = {k: record.config[k] for k in WATCHED if k in record.config}
    work, fit = _work(record.identity, watched), _seconds(record.timings, "fit_seconds")
    if record.status != "completed" or work is None or fit is None:
        return None
    rest = sum(_seconds(record.timings, key) or 0.0 for key in ("setup_seconds", "measure_seconds"))
    written = str(record.provenance.get("written") or "")
    return _Past(
        work,
        _device(record.provenance),
        written,
        fit,
        rest,
        peak_bytes=_whole(record.memory, "peak_bytes"),
        params=_whole(record.metrics, "params"),
        layers=_whole(record.norm_swap, "replaced") or 0,
        train_images=_whole(_mapping(record.provenance, "data"), "train_images") or 0,
        is_probe=PROBED in record.provenance,
    )


def _work(identity: Mapping[str, Any], watched: Mapping[str, Any]) -> _Work | None:
    recipe = _mapping(identity, "recipe")
    norm, nbs, batch = (
        _mapping(identity, "norm").get("name"),
        identity.get("nbs"),
        identity.get("per_device_batch"),
    )
    epochs = recipe.get("epochs")
    if not (isinstance(norm, str) and isinstance(nbs, int | None)):
        return None
    if not (isinstance(batch, int) and isinstance(epochs, int) and epochs > 0):
        return None
    kind = {key: identity.get(key) for key in ALIKE}
    # A range test ends where training diverges, whatever its epochs.
    kind["range"] = _mapping(recipe, "schedule").get("name") == "range"
    execution = digest(identity["execution"]) if "execution" in identity else None
    return _Work(
        digest(cell_of(identity), 64), digest(kind, 64), batch, execution, norm, nbs, epochs, watched
    )


def _device(provenance: Mapping[str, Any]) -> Device:
    device, host = (_mapping(provenance, key) for key in ("device", "host"))
    return Device(device.get("type"), device.get("name") or host.get("cpu"))


def _may_train(run: RunConfig, device: Device) -> bool:
    """Whether the run may be trained on the device; `auto` takes GPUs where there are any, so either tells."""
    return device.type is None or device.type != {"cpu": "cuda", "gpu": "cpu"}.get(run.trainer.accelerator)


def _is_alike(mine: _Work, theirs: _Work) -> bool:
    return mine.kind == theirs.kind and theirs.execution in (None, mine.execution)


def _watches_alike(mine: _Work, theirs: _Work) -> bool:
    """Where the record is silent, yes."""
    return all(mine.watched[key] == value for key, value in theirs.watched.items())


def _distance(mine: _Work, theirs: _Work) -> tuple[bool, bool, float, bool]:
    """How far two are in what costs: the norm, statistics over ranks, NBS, and whether the time is to be scaled."""
    apart = 0.0 if mine.nbs == theirs.nbs else math.inf
    if mine.nbs and theirs.nbs:
        apart = abs(math.log2(mine.nbs / theirs.nbs))
    over_ranks = [(work.nbs or 0) > mine.device_batch for work in (mine, theirs)]
    return mine.norm != theirs.norm, over_ranks[0] != over_ranks[1], apart, mine.epochs != theirs.epochs


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _seconds(timings: Mapping[str, Any], key: str) -> float | None:
    value = timings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf):
        return None
    return float(value)


def _whole(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
