"""One run on one rank of a joined world: data -> model -> norm swap -> module -> Trainer -> record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bnbench import data
from bnbench.config import RunConfig
from bnbench.records import EPOCHS, Record, Status, digest, write_record
from bnbench.training.callbacks import History, RunningStatistics, TrainingCurve
from bnbench.training.result import WEIGHTS, divergence, metrics, run_provenance, save_weights, timings
from bnbench.training.setup import DataCache, set_up, settle
from bnbench.training.tracking import describe, finish_tracking, start_tracking
from bnbench.training.trainer import build_trainer, norm_callbacks, statistics_policy
from bnbench.training.world import World

Report = Callable[[Mapping[str, Any]], None]


def train_run(config: RunConfig, world: World, cache: DataCache, report: Report) -> Status:
    """Train one run; call it on every rank. Rank 0 leaves the record, and every rank returns its status.

    Raises SetupError on every rank, before anything is written, for a user's mistake that only the setup
    can see (an image that does not decode, a folder that cannot be made). What goes wrong later
    propagates: the world is then not to be used again.
    """
    started = time.perf_counter()
    settle(config, world)
    _together(world, partial(_download, config, world))
    setup = _together(world, partial(set_up, config, world, cache))
    _together(world, partial(_make_folder, config, world))
    logger = start_tracking(config, config.folder) if world.leads else None
    record = None
    try:
        curve = TrainingCurve(config.trainer.log_every, config.global_batch, report)
        images = len(setup.train_loader) * config.global_batch
        history = History(config.folder if world.leads else None, curve, images)
        running = RunningStatistics(statistics_policy(config))
        callbacks = [running, *norm_callbacks(config, len(setup.train_loader)), curve, history]
        trainer = build_trainer(config, world, logger, callbacks)
        fit_started = time.perf_counter()
        trainer.fit(setup.module, setup.train_loader, setup.test_loader)
        fit_seconds = time.perf_counter() - fit_started
        model = setup.module.model
        running.merge(model, trainer.global_step)
        diverged = divergence(curve, running.poisoned, history.epochs)
        status: Status = "completed" if diverged is None else "diverged"
        if world.leads:
            record = Record(
                schema=1,
                id=digest(config.identity()),
                name=config.run_name,
                identity=config.identity(),
                status=status,
                config=dataclasses.asdict(config),
                metrics=metrics(history.epochs, model, status),
                timings=timings(history.epochs, fit_seconds, fit_started - started, len(setup.train_loader)),
                provenance=run_provenance(config, world, setup.splits),
                error=diverged,
                norm_swap=setup.norm_swap,
                wandb=describe(logger),
            )
            # What is not finite is nobody's checkpoint.
            record.metrics["weights_sha256"] = save_weights(config, model) if diverged is None else None
            write_record(config.folder, record)
        return status
    finally:
        finish_tracking(logger, record)


def _together(world: World, step: Callable[[], Any]) -> Any:
    """Run a step that may find a user's mistake; if any rank finds one, every rank raises it."""
    problem, result = None, None
    try:
        result = step()
    except ValueError as error:
        problem = str(error)
    world.agree(problem)
    return result


def _download(config: RunConfig, world: World) -> None:
    """One rank of each node fetches what is not there yet; the others wait for it in `_together`."""
    if config.data.download and world.place.local_rank == 0:
        data.load(config.data)


def _make_folder(config: RunConfig, world: World) -> None:
    if not world.leads:
        return
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
        for left in (EPOCHS, WEIGHTS):  # of an attempt that did not finish
            (config.folder / left).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{config.folder} cannot be made ({error.strerror}): choose another dir=..."
        ) from None
