"""What a sweep would do, cell by cell, with the time that earlier records tell. Starts and writes nothing. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.compose import Job, Request
from bnbench.config import RunConfig
from bnbench.records import Record, cell_of, digest, find_records, read_record
from bnbench.sweep.disk import Disk, checkpoint_bytes, disk_needs
from bnbench.sweep.estimate import Device, Estimate, Estimates, estimate
from bnbench.sweep.fairness import told
from bnbench.sweep.names import apart, short
from bnbench.sweep.plan import Plan

# From cells (a run of each) and earlier records; problems by the places of their cells.
Estimator = Callable[[Sequence[RunConfig], Sequence[Record]], tuple[Estimates, Mapping[int, str]]]


@dataclass(frozen=True)
class PlannedCell:
    name: str
    todo: list[RunConfig]
    finished: list[RunConfig]
    estimate: Estimate | None  # of a run; None where nothing is to do, or no record fits
    on_gpus: bool = False  # that estimate
    problem: str | None = None  # why its probe tells nothing
    others: Sequence[RunConfig] = ()  # finished by other code: neither to do nor done

    @property
    def runs(self) -> list[RunConfig]:
        return sorted([*self.finished, *self.todo, *self.others], key=lambda run: run.seed)

    @property
    def seconds(self) -> float | None:
        return None if self.estimate is None else self.estimate.seconds * len(self.todo)

    @property
    def params(self) -> int | None:
        return None if self.estimate is None else self.estimate.params

    @property
    def gpu_hours(self) -> float | None:
        """Every rank holds a GPU. None where the estimate is not of GPUs."""
        if self.seconds is None or not self.on_gpus:
            return None
        return self.seconds * self.todo[0].trainer.world_size / 3600


@dataclass(frozen=True)
class Tracking:
    """Where the curves would go: W&B's mode (`none` without it) and project, and what WANDB_MODE holds."""

    mode: str
    project: str | None
    entity: str | None
    environment: str | None


@dataclass(frozen=True)
class Earlier:
    """The records that estimates may rest on, and where they were looked for."""

    records: list[Record]
    folders: list[Path]
    unreadable: int = 0


@dataclass(frozen=True)
class Preview:
    """`fairness` and `remarks` are the lines that `bnbench train` opens with, and what would keep it from starting."""

    jobs: list[Job]
    plan: Plan
    cells: list[PlannedCell]
    device: Device | None
    earlier: Earlier
    tracking: Tracking | None
    disk: Disk | None  # None where nothing is to do
    fairness: list[str]
    remarks: list[str]
    refusal: str | None  # why `bnbench train` would not start what is valid
    command: str

    @property
    def invalid(self) -> list[Job]:
        return [job for job in self.jobs if job.problem is not None]

    @property
    def without_estimate(self) -> int:
        return sum(len(cell.todo) for cell in self.cells if cell.estimate is None)

    @property
    def seconds(self) -> float | None:
        """Of the runs that have an estimate, one after another; None where runs are to do and none has one."""
        known = [cell.seconds for cell in self.cells if cell.seconds is not None]
        return sum(known) if known or not self.plan.todo else None

    @property
    def gpu_hours(self) -> float | None:
        """Of the runs that have an estimate. None where those are not of GPUs."""
        known = [cell.gpu_hours for cell in self.cells if cell.gpu_hours is not None]
        return sum(known) if known else None

    def as_json(self) -> dict[str, Any]:
        runs, track = self.plan.runs, self.tracking
        return {
            "cells": [_cell_json(cell) for cell in self.cells],
            "invalid": [{"overrides": job.words, "reason": job.problem} for job in self.invalid],
            "totals": {
                "cells": len(self.cells),
                "runs": len(runs),
                "finished": len(self.plan.finished),
                "todo": len(self.plan.todo),
                "other_code": sum(len(cell.others) for cell in self.cells),
                "invalid": len(self.invalid),
                "seconds": self.seconds,
                "without_estimate": self.without_estimate,
                "gpu_hours": self.gpu_hours,
            },
            "device": None if self.device is None else {"type": self.device.type, "name": self.device.name},
            "records": {
                "read": len(self.earlier.records),
                "unreadable": self.earlier.unreadable,
                "folders": [str(folder) for folder in self.earlier.folders],
            },
            "folders": list(dict.fromkeys(run.dir for run in runs)),
            "disk": None if self.disk is None else _disk_json(self.disk),
            "ranks": self.plan.ranks(),
            "wandb": None
            if track is None
            else {
                "mode": track.mode,
                "project": track.project,
                "entity": track.entity,
                "WANDB_MODE": track.environment,
            },
            "fairness": self.fairness,
            "remarks": self.remarks,
            "refusal": self.refusal,
            "command": self.command,
        }


def preview(
    request: Request,
    plan: Plan,
    earlier: Earlier,
    remarks: Sequence[str],
    worlds: int,
    command: str,
    estimator: Estimator = lambda cells, records: (estimate(cells, records), {}),
) -> Preview:
    """`remarks` are added to the plan's own; `worlds` are at work at a time."""
    groups: dict[str, list[RunConfig]] = {}
    for run in plan.runs:
        groups.setdefault(digest(cell_of(run.identity()), 64), []).append(run)
    runs_of = list(groups.values())
    done, to_do = ({run.folder for run in runs} for runs in (plan.finished, plan.todo))
    todo = [[run for run in runs if run.folder in to_do] for runs in runs_of]
    told_by, problems = estimator([runs[0] for runs in todo if runs], earlier.records)
    on_gpus = told_by.device is not None and told_by.device.type == "cuda"
    places = iter(range(len(told_by.cells)))
    cells = []
    settings = apart([runs[0] for runs in runs_of])
    for runs, left in zip(runs_of, todo, strict=True):
        name = " ".join([short(runs[0]), *settings[runs[0].folder]])
        finished = [run for run in runs if run.folder in done]
        others = [run for run in runs if run.folder not in done | to_do]
        place = next(places) if left else None
        known, problem = (None, None) if place is None else (told_by.cells[place], problems.get(place))
        cells.append(PlannedCell(name, left, finished, known, on_gpus, problem, others))
    return Preview(
        jobs=request.jobs,
        plan=plan,
        cells=cells,
        device=told_by.device,
        earlier=earlier,
        tracking=_tracking(plan.runs),
        disk=disk_needs([(run, cell.estimate) for cell in cells for run in cell.todo], worlds)
        if plan.todo
        else None,
        fairness=told(plan.runs) if request.multirun and plan.runs else [],
        remarks=[*plan.remarks, *remarks],
        refusal=plan.refusal(),
        command=command,
    )


def read_earlier(runs: Iterable[RunConfig]) -> Earlier:
    """The records of the sweeps beside that of these runs, and of its own.

    A folder that the working directory lies in is not searched: data and environments may lie there too.
    """
    folders = []
    for folder in dict.fromkeys(Path(run.dir) for run in runs):
        beside = folder.absolute().parent
        folders.append(folder if Path.cwd().is_relative_to(beside) else folder.parent)
    paths = {path.resolve(): path for root in dict.fromkeys(folders) for path in find_records(root)}
    records, unreadable = [], 0
    for path in paths.values():
        try:
            records.append(read_record(path))
        except ValueError:
            unreadable += 1
    return Earlier(records, list(dict.fromkeys(folders)), unreadable)


def _tracking(runs: Sequence[RunConfig]) -> Tracking | None:
    if not runs:
        return None
    modes = dict.fromkeys("none" if run.logger.name == "none" else run.logger.mode for run in runs)
    logger = next((run.logger for run in runs if run.logger.name != "none"), None)
    project, entity = (None, None) if logger is None else (logger.project, logger.entity)
    return Tracking(" or ".join(modes), project, entity, os.environ.get("WANDB_MODE"))


def _cell_json(cell: PlannedCell) -> dict[str, Any]:
    first, told_by = cell.runs[0], cell.estimate
    states = {
        run.folder: state
        for state, runs in (("finished", cell.finished), ("todo", cell.todo), ("other code", cell.others))
        for run in runs
    }
    return {
        "name": cell.name,
        "id": digest(cell_of(first.identity())),
        "model": first.model.label,
        "norm": first.kind,
        "nbs": first.nbs,
        "seeds": [run.seed for run in cell.runs],
        "seconds": cell.seconds,
        "seconds_per_run": None if told_by is None else told_by.seconds,
        "gpu_hours": cell.gpu_hours,
        "peak_bytes": None if told_by is None else told_by.peak_bytes,
        "params": cell.params,
        "checkpoint_bytes": None
        if told_by is None or cell.params is None
        else checkpoint_bytes(first, told_by),
        "source": None if told_by is None else told_by.source,
        "problem": cell.problem,
        "runs": [
            {
                "name": run.run_name,
                "id": digest(run.identity()),
                "folder": str(run.folder),
                "status": states[run.folder],
                "seconds": None if told_by is None or states[run.folder] != "todo" else told_by.seconds,
            }
            for run in cell.runs
        ],
    }


def _disk_json(disk: Disk) -> dict[str, int]:
    return {
        "needed_bytes": disk.needed,
        "kept_bytes": disk.kept,
        "checkpoints_bytes": disk.checkpoints,
        "free_bytes": disk.free,
        "unknown_runs": disk.unknown,
    }
