"""The curves' way to W&B: one of its runs for each of ours, on rank 0 alone. No failure of W&B ends a run."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from bnbench import wandb_run
from bnbench.config import RunConfig
from bnbench.curves import STEP, Point, points
from bnbench.records import Record
from bnbench.training.callbacks import PreemptedError

LOST = "bnbench sync sends what is missing, later"

log = logging.getLogger(__name__)


class Tracker(Logger):
    """A W&B run as Lightning logs to it: what comes at one step is one row, and no step has two.

    `known`: the steps that the server has. `restored`: the folder of a run that goes on from a checkpoint; its rows of
    before are logged first, those at `known` steps excepted. `problem` says why W&B was given up, if it was.
    """

    def __init__(self, run: Any, known: set[int], restored: Path | None = None) -> None:
        super().__init__()
        self.run, self.known, self._restored = run, known, restored
        self.problem: str | None = None
        self._step, self._point = -1, Point()

    @property
    def name(self) -> str:
        return self.run.project

    @property
    def version(self) -> str:
        return self.run.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run was opened with its config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None and step >= self._step
        self._restore(step)
        if step != self._step:
            self._send()
        self._step = step
        self._point.update(metrics)

    def close(self, record: Record | None, error: BaseException | None) -> None:
        """Send what is left, and the record's summary; wait for the server as long as the run was opened with."""
        if self.problem is None:
            self._restore(None)
            if error is None or isinstance(error, PreemptedError):
                self._send()  # else what failed may lack in the point: the next attempt sends it whole, or bnbench sync
            folder = Path(self.run.settings.sync_dir)
            self._attempt(lambda: self._finish(record, error))
            if self.problem is None:
                _remove_older(folder, self.run.id)
        if self.problem is not None:
            wandb_run.end_service()  # else the next run of this process meets one that is gone

    def _restore(self, before: int | None) -> None:
        """Once the callbacks have written their files again: the rows that this attempt does not train."""
        folder, self._restored = self._restored, None
        for step, point in ({} if folder is None else points(folder)).items():
            if before is None or step < before:
                self._step, self._point = step, point
                self._send()

    def _send(self) -> None:
        step, point = self._step, self._point
        self._point = Point()
        if point and step not in self.known:
            self.known.add(step)
            self._attempt(lambda: self.run.log({**point, STEP: step}))

    def _finish(self, record: Record | None, error: BaseException | None) -> None:
        if record is not None:
            self.run.summary.update(wandb_run.summary(record))
        if isinstance(error, PreemptedError):
            self.run.mark_preempting()
        elif error is not None:
            self.run.alert(f"{self.run.name} failed", f"{type(error).__name__}: {error}", level="ERROR")
        self.run.finish(exit_code=0 if record is not None and record.status == "completed" else 1)

    def _attempt(self, call: Callable[[], Any]) -> None:
        if self.problem is not None:
            return
        try:
            call()
        except Exception as error:
            self.problem = _line(error)
            log.warning("W&B was lost (%s): the run goes on without it; %s", self.problem, LOST)


def start_tracking(config: RunConfig, folder: Path, resumed: bool = False) -> Tracker | None:
    """A started W&B run in `folder`; None with logger=none, or where not even files can be written. Never fatal.

    Where the server does not take the run within `logger.init_timeout`, it is offline. An id in the environment, an
    agent's, wins. `resumed`: the run goes on from a checkpoint.
    """
    if config.logger.name == "none":
        return None
    wandb_run.set_environment(Path(config.dir))  # of the sweep: the process goes on to other runs
    logger, identity = config.logger, config.identity()
    given = wandb_run.options(dataclasses.asdict(config), identity, config.run_name)
    given["id"] = wandb_run.given_id() or wandb_run.run_id(config.name, identity)
    run = None
    for mode in dict.fromkeys((logger.mode, "offline")):
        try:
            run = wandb_run.open_run(mode, logger.init_timeout, logger.finish_timeout, folder, **given)
            break
        except Exception as error:
            wandb_run.end_service()  # else the id counts as in use
            how = "logging offline" if mode == "online" else "not logging"
            log.warning("W&B does not take the run (%s): %s; %s", _line(error), how, LOST)
    if run is None:
        return None
    return Tracker(run, _known(run) if run.resumed else set(), folder if resumed else None)


def describe(logger: Tracker | None) -> dict[str, Any]:
    """Where the W&B run is, for the record. `problem`: why rows are missing there."""
    if logger is None:
        return {}
    run = logger.run
    mode = "disabled" if run.disabled else "offline" if run.offline else "online"
    found = {"id": run.id, "name": run.name, "group": run.group, "project": run.project, "mode": mode}
    # A disabled one has a made-up entity.
    found |= {"entity": None if run.disabled else run.entity or None, "url": None if run.offline else run.url}
    return found if logger.problem is None else found | {"problem": logger.problem}


def finish_tracking(
    logger: Tracker | None, record: Record | None, error: BaseException | None = None
) -> None:
    """Write the summary and close, or the next run of this process would log into this one."""
    if logger is not None:
        logger.close(record, error)


def _known(run: Any) -> set[int]:
    """The steps that the server has of a run that it has seen before; asks for `API_SECONDS` at most."""
    import wandb

    def ask() -> set[int]:
        api = wandb.Api(timeout=wandb_run.API_SECONDS)
        found = wandb_run.find_run(api, f"{run.entity}/{run.project}/{run.id}")
        return set() if found is None else wandb_run.steps_of(found)

    try:
        return wandb_run.within(wandb_run.API_SECONDS, ask)
    except Exception as error:
        # Rows go there in the order of steps, so that it has all up to the last.
        last = run.summary.get(STEP)
        log.warning("W&B does not list the rows that it has (%s): going on after step %s", _line(error), last)
        return set() if last is None else set(range(int(last) + 1))


def _remove_older(folder: Path, run_id: str) -> None:
    """Files of attempts before, whose rows this one has sent or written too: `wandb sync` would send them twice."""
    for older in folder.parent.glob(f"offline-run-*-{run_id}"):
        if older != folder:
            shutil.rmtree(older, ignore_errors=True)


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
