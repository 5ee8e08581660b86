"""The W&B server as `bnbench sync` needs it: asked what it has of a run, and sent what it lacks. No torch."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench import wandb_run
from bnbench.curves import STEP, Point
from bnbench.wandb_run import asking, connect, line_of, within

if TYPE_CHECKING:
    from bnbench.sync import Local


INIT_SECONDS = 30.0  # to open a run


class NotTakenError(Exception):
    """The server answers, and does not take a run; one line."""


@dataclass(frozen=True)
class Missing:
    """What the server lacks of a run: points by step; whether it is `new` there, and its summary is the record's."""

    points: dict[int, Point]
    new: bool
    summarised: bool

    def __bool__(self) -> bool:
        return bool(self.points) or not self.summarised


class Server:
    """W&B, asked and written to.

    Whatever it is asked: ValueError without a key or with one that is refused, LostError without an answer. Of a run
    also NotTakenError.
    """

    def __init__(self, init_timeout: float | None, finish_timeout: float) -> None:
        self.seconds = wandb_run.API_SECONDS if init_timeout is None else init_timeout  # of a question
        self.init_timeout = INIT_SECONDS if init_timeout is None else init_timeout
        self.finish_timeout = finish_timeout
        self.api, self.entity = connect(self.seconds)

    def missing(self, local: Local) -> Missing:
        """What it lacks of a run now."""
        path = f"{local.entity or self.entity}/{local.project}/{local.id}"

        def ask() -> tuple[set[int], dict[str, Any]] | None:
            found = wandb_run.find_run(self.api, path)
            return None if found is None else (wandb_run.steps_of(found), dict(found.summary))

        try:
            there = within(self.seconds, ask)
        except Exception as error:
            raise self._problem(error) from None
        if there is None:
            return Missing(local.points, new=True, summarised=False)
        known, summary = there
        rest = {step: point for step, point in local.points.items() if step not in known}
        wanted = wandb_run.summary(local.record)
        plain = {key: value for key, value in wanted.items() if isinstance(value, (int, float, str))}
        same = all(summary.get(key) == value for key, value in plain.items())
        return Missing(rest, new=False, summarised=same)

    def send(self, local: Local, missing: Missing) -> None:
        """Returns once it has everything: it is asked again."""
        record = local.record
        given = wandb_run.options(record.config, record.identity, record.name)
        given |= {"id": local.id, "project": local.project, "entity": local.entity}
        try:
            with tempfile.TemporaryDirectory(prefix="bnbench-sync-") as folder:
                run = wandb_run.open_run(
                    "online", self.init_timeout, self.finish_timeout, Path(folder), **given
                )
                for step, point in missing.points.items():
                    run.log({**point, STEP: step})
                run.summary.update(wandb_run.summary(record))
                run.finish(exit_code=0 if record.status == "completed" else 1)
        except Exception as error:
            raise self._problem(error) from None
        if self.missing(local):
            raise NotTakenError("W&B has not taken all of it")

    def _problem(self, error: Exception) -> Exception:
        """Of one run, if the server still answers and takes the key; else raises what is wrong with those."""
        if isinstance(error, TimeoutError) or re.search("entity .* not found", str(error)):
            with asking():
                raise error
        wandb_run.end_service()  # else the next run may be logged into this one
        self.api, self.entity = connect(self.seconds)
        return NotTakenError(f"W&B does not take it ({line_of(error)})")
