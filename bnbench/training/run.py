"""One run on one rank of a joined world: data -> model -> norm swap -> module -> Trainer -> record."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from bnbench import data
from bnbench.config import RunConfig
from bnbench.provenance import code_digest
from bnbench.records import EPOCHS, HEALTH, Record, Status, digest, finished_status, write_record
from bnbench.training.callbacks import (
    Checkpoint,
    History,
    RunningStatistics,
    Series,
    TrainingCurve,
    is_stateful,
    precise_over,
)
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.evaluation import FinalMeasures, landscape_metrics
from bnbench.training.lock import RunLock
from bnbench.training.result import (
    WEIGHTS,
    asked,
    data_wait,
    divergence,
    metrics,
    run_provenance,
    save_weights,
    timings,
)
from bnbench.training.setup import DataCache, Setup, set_up, settle
from bnbench.training.tracking import describe, finish_tracking, start_tracking
from bnbench.training.trainer import build_trainer, measuring_callbacks, norm_callbacks, statistics_policy
from bnbench.training.world import World

Report = Callable[[Mapping[str, Any]], None]
log = logging.getLogger(__name__)


def never() -> bool:
    return False


def train_run(
    config: RunConfig, world: World, cache: DataCache, report: Report, stop: Callable[[], bool] = never
) -> Status:
    """Train one run, or go on with it from its last checkpoint; call it on every rank. Rank 0 leaves the record, and
    every rank returns its status.

    `stop` says whether this rank was asked to stop: PreemptedError is then raised on every rank, once a checkpoint is
    on disk. Raises SetupError on every rank, before anything is written, for a user's mistake that only the setup
    can see (an image that does not decode, a folder that cannot be made). What goes wrong later
    propagates: the world is then not to be used again.
    """
    started = time.perf_counter()
    settle(config, world)
    _together(world, partial(_download, config, world))
    setup = _together(world, partial(set_up, config, world, cache))
    lock = RunLock(config.folder)
    try:
        _together(world, partial(_make_folder, config, world, lock))
        return _train(config, world, setup, report, stop, started)
    finally:
        setup.close()
        lock.release()


def _train(
    config: RunConfig, world: World, setup: Setup, report: Report, stop: Callable[[], bool], started: float
) -> Status:
    finished = world.from_leader(finished_status(config.folder) if world.leads else None)
    if finished is not None:  # by another process, since this one planned
        return finished
    checkpoints = CheckpointFolder(config.folder, maker(config, world))
    found, remarks = world.from_leader(checkpoints.newest() if world.leads else None)
    for remark in remarks if world.leads else ():
        log.warning("%s: %s", config.run_name, remark)
    logger = start_tracking(config, config.folder) if world.leads else None
    record = None
    try:
        steps = setup.train_loader.steps
        curve = TrainingCurve(config, steps, report)
        history = History(config.folder if world.leads else None, curve)
        policy, precise = statistics_policy(config), None
        if policy == "precise":
            precise = precise_over(setup.train_loader, config.measure.precise_steps)
        running = RunningStatistics(policy, precise)
        series = Series(config.folder if world.leads else None)
        watching = measuring_callbacks(config, setup.train_loader, series)
        # History first: what the others do before an evaluation is not training time.
        callbacks = [history, running, *norm_callbacks(config, steps, precise), *watching, curve]
        watched = data.WatchedLoader(setup.train_loader)
        kept = {type(part).__name__: part for part in [*callbacks, series] if is_stateful(part)}
        checkpoint = Checkpoint(checkpoints, kept, watched, config, steps, stop)
        every = len(setup.train_loader) // config.evals_per_epoch
        trainer = build_trainer(config, world, logger, [*callbacks, checkpoint], every, checkpoints)
        fit_started = time.perf_counter()
        report({"stage": "training"})
        trainer.fit(setup.module, watched, setup.test_loader, ckpt_path=found)
        fit_seconds = time.perf_counter() - fit_started + checkpoint.seconds_before
        model = setup.module.evaluated
        context = trainer.precision_plugin.forward_context
        with context():
            running.merge(model, trainer.global_step)
        diverged = divergence(config, curve, running.poisoned, history.evaluations)
        status: Status = "completed" if diverged is None else "diverged"
        # The end of a range test is no trained network.
        done = status == "completed" and config.schedule.name != "range"
        measured = FinalMeasures(config, world, setup, running).measure(context, done)
        waiting = data_wait(watched, history.evaluations, world)
        if world.leads:
            record = Record(
                schema=1,
                id=digest(config.identity()),
                name=config.run_name,
                identity=config.identity(),
                status=status,
                config=dataclasses.asdict(config),
                metrics=metrics(history.epochs, model, done)
                | asked(config, history.evaluations, curve, setup.splits.train.num_classes)
                | measured.metrics
                | landscape_metrics(config, series, done),
                timings=timings(history.evaluations, fit_seconds, fit_started - started, curve.between)
                | {"measure_seconds": measured.seconds, **waiting},
                provenance=run_provenance(config, world, setup.splits)
                | {"start": setup.start, "measure_remarks": measured.remarks}
                | {"resumed": checkpoint.resumed, "checkpoint_remarks": remarks},
                error=diverged,
                norm_swap=setup.norm_swap,
                health={"every": config.measure.health_every, **series.medians()} if watching else {},
                wandb=describe(logger),
            )
            # What is not finite is nobody's checkpoint.
            record.metrics["weights_sha256"] = save_weights(config, model) if done else None
            write_record(config.folder, record)
            checkpoints.clear()
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


def maker(config: RunConfig, world: World) -> str:
    """What has to be the same for a run to go on from a checkpoint, beside its identity, in 8 hexadecimal digits."""
    return digest(
        {
            "code": code_digest(),
            "torch": torch.__version__,
            "device": world.device.type,
            "measure": dataclasses.asdict(config.measure),
            "evaluations": [config.evals_per_epoch, config.target_error],
            "log_every": config.trainer.log_every,
        }
    )


def _download(config: RunConfig, world: World) -> None:
    """One rank of each node fetches what is not there yet; the others wait for it in `_together`."""
    if config.data.download and world.place.local_rank == 0:
        data.load(config.data)


def _make_folder(config: RunConfig, world: World, lock: RunLock) -> None:
    if not world.leads:
        return
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
        lock.take()
        if finished_status(config.folder) is not None:
            return
        for left in (EPOCHS, HEALTH, WEIGHTS):  # of an attempt that did not finish
            (config.folder / left).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{config.folder} cannot be made ({error.strerror}): choose another dir=..."
        ) from None
