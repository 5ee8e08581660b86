"""One run on one rank of a joined world: data -> model -> norm swap -> module -> Trainer -> record."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bnbench import data
from bnbench.config import RunConfig
from bnbench.lock import RunLock, is_taken
from bnbench.provenance import code_digest
from bnbench.records import CURVE, EPOCHS, HEALTH, Status, digest, finished_status, write_record
from bnbench.training.callbacks import (
    Checkpoint,
    History,
    RunningStatistics,
    Series,
    Speed,
    TrainingCurve,
    is_stateful,
    precise_over,
)
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.evaluation import FinalMeasures, landscape_metrics
from bnbench.training.memory import PeakMemory
from bnbench.training.result import (
    WEIGHTS,
    asked,
    data_wait,
    divergence,
    metrics,
    norm_kernels,
    run_provenance,
    save_weights,
    timings,
)
from bnbench.training.setup import Sets, Setup, set_up, settle
from bnbench.training.tracking import describe, finish_tracking, start_tracking
from bnbench.training.trainer import build_trainer, measuring_callbacks, norm_callbacks, statistics_policy
from bnbench.training.world import World

Report = Callable[[Mapping[str, Any]], None]
log = logging.getLogger(__name__)


class BusyError(Exception):
    """Another process trains the run; raised on every rank, with nothing written."""


def never() -> bool:
    return False


def train_run(
    config: RunConfig, world: World, cache: Sets, report: Report, stop: Callable[[], bool] = never
) -> str:
    """Train one run, or go on with it from its last checkpoint; call it on every rank. Rank 0 leaves the record, and
    every rank returns its status; of a finished run that is there by now, what `finished_status` calls it.

    `stop` says whether this rank was asked to stop: PreemptedError is then raised on every rank, once a checkpoint is
    on disk. Raises on every rank, before anything is written, SetupError for a user's mistake that only the setup
    can see (an image that does not decode, a folder that cannot be made) and BusyError where another process
    trains the run. What goes wrong later propagates: the world is then not to be used again.
    """
    started = time.perf_counter()
    settle(config, world)
    memory = PeakMemory(world.device)
    world.together(partial(_download, config, world))
    setup = set_up(config, world, cache)
    lock = RunLock(config.folder)
    try:
        world.together(partial(_make_folder, config, world))
        if not world.from_leader(world.together(lambda: lock.take() if world.leads else None)):
            raise BusyError(f"{config.folder} is being trained by another process")
        world.locked = config.folder
        return _train(config, world, setup, report, stop, started, memory)
    finally:
        setup.close()
        lock.release()


def _train(
    config: RunConfig,
    world: World,
    setup: Setup,
    report: Report,
    stop: Callable[[], bool],
    started: float,
    memory: PeakMemory,
) -> str:
    finished = world.from_leader(finished_status(config.folder) if world.leads else None)
    if finished is not None:  # by another process, since this one planned
        return finished
    for left in (CURVE, EPOCHS, HEALTH, WEIGHTS) if world.leads else ():  # of an attempt that did not finish
        (config.folder / left).unlink(missing_ok=True)
    checkpoints = CheckpointFolder(config.folder, maker(config, world))
    found, remarks = world.from_leader(_last_checkpoint(config, checkpoints) if world.leads else None)
    for remark in remarks if world.leads else ():
        log.warning("%s: %s", config.run_name, remark)
    logger = start_tracking(config, config.folder, resumed=found is not None) if world.leads else None
    record = None
    try:
        steps = setup.train_loader.steps
        folder = config.folder if world.leads else None
        curve = TrainingCurve(config, steps, report, folder)
        history = History(folder, curve)
        policy, precise = statistics_policy(config), None
        if policy == "precise":
            precise = precise_over(setup.train_loader, config.measure.precise_steps)
        running = RunningStatistics(policy, precise)
        series = Series(folder)
        watching = measuring_callbacks(config, setup.train_loader, series)
        watched = data.WatchedLoader(setup.train_loader)
        speed = Speed(config, world, watched) if config.measure.speed_every is not None else None
        # History first: what the others do before an evaluation is not training time. What comes behind Speed at the
        # end of a step is the next one's.
        first = [history, running, *([] if speed is None else [speed])]
        callbacks = [*first, *norm_callbacks(config, steps, precise), *watching, curve]
        kept = {type(part).__name__: part for part in [*callbacks, series] if is_stateful(part)}
        checkpoint = Checkpoint(checkpoints, kept, watched, config, steps, stop)
        every = len(setup.train_loader) // config.evals_per_epoch
        trainer = build_trainer(config, world, logger, [*callbacks, checkpoint], every, checkpoints)
        fit_started = time.perf_counter()
        report({"stage": "training"})
        trainer.fit(setup.module, watched, setup.test_loader, ckpt_path=found)
        fit_seconds = time.perf_counter() - fit_started + checkpoint.seconds_before
        setup.module.to(world.device)  # Lightning leaves a network on the CPU
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
        held = memory.largest(world)
        looked = {} if speed is None else speed.summary()
        if world.leads:
            record = config.record(
                status,
                metrics=metrics(history.epochs, model, done)
                | asked(config, history.evaluations, curve, setup.splits.train.num_classes)
                | measured.metrics
                | landscape_metrics(config, series, done),
                timings=timings(history.evaluations, curve, fit_seconds, fit_started - started)
                | {"measure_seconds": measured.seconds, **waiting},
                provenance=run_provenance(config, world, setup.splits)
                | {"norm_kernels": norm_kernels(setup.module.model)}
                | {"start": setup.start, "measure_remarks": measured.remarks}
                | {"resumed": checkpoint.resumed, "checkpoint_remarks": remarks},
                error=diverged,
                norm_swap=setup.norm_swap,
                health={"every": config.measure.health_every, **series.medians()} if watching else {},
                wandb=describe(logger),
                memory=held,
                speed=looked,
            )
            # What is not finite is nobody's checkpoint.
            record.metrics["weights_sha256"] = save_weights(config, model) if done else None
            write_record(config.folder, record)
            checkpoints.clear()
        return status
    finally:
        finish_tracking(logger, record, sys.exception())


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


def _last_checkpoint(config: RunConfig, checkpoints: CheckpointFolder) -> tuple[Path | None, list[str]]:
    """Where to go on from, if anywhere, and what is to be said of it."""
    found, remarks = checkpoints.newest()
    other = config.begun_elsewhere
    if found is None and other is not None:
        there = f"trainer.resume_world={config.trainer.resume_world}"
        if is_taken(other.folder):
            return None, [*remarks, f"{there}: {other.folder} is being trained, so this run begins anew"]
        found, more = CheckpointFolder(other.folder, checkpoints.maker).newest()
        remarks += (
            more if found else [*more, f"{there}: no checkpoint in {other.folder}, so this run begins anew"]
        )
    return found, remarks


def _download(config: RunConfig, world: World) -> None:
    """One rank of each node fetches what is not there yet; the others wait for it in `World.together`."""
    if config.data.download and world.place.local_rank == 0:
        data.load(config.data)


def _make_folder(config: RunConfig, world: World) -> None:
    if not world.leads:
        return
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{config.folder} cannot be made ({error.strerror}): choose another dir=..."
        ) from None
