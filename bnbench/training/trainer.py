"""Lightning's Trainer for a joined world, and the callbacks that a norm asks for."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from bnbench.config import RunConfig
from bnbench.training.callbacks import (
    FreezeStatistics,
    Health,
    Landscape,
    MergeEveryStep,
    Precise,
    Series,
    bundle,
)
from bnbench.training.checkpoint import CheckpointFolder
from bnbench.training.loop import OneDevice, Ranks, StepLoop
from bnbench.training.world import JoinedEnvironment, World

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}


def statistics_policy(config: RunConfig) -> str:
    return config.norm.statistics or "mean"


def norm_callbacks(config: RunConfig, steps_per_epoch: int, precise: Precise | None = None) -> list[Any]:
    """What some norms need done between steps."""
    norm, found = config.norm, list[Any]()
    if config.kind == "brn" and config.trainer.world_size > 1:
        found.append(MergeEveryStep())
    if config.kind == "frozen" and norm.after:
        total = config.epochs * steps_per_epoch
        found.append(FreezeStatistics(norm.after, total, statistics_policy(config), precise))
    return found


def measuring_callbacks(config: RunConfig, loader: Any, series: Series) -> list[Any]:
    """What looks into training at intervals, and leaves it bit-identical."""
    measure, parts, found = config.measure, config.recipe.accumulate, list[Any]()
    if measure.health_every is not None:
        found.append(Health(measure.health_every, series, ranks=config.span.ranks, parts=parts))
    if measure.landscape:
        probe, _ = next(iter(loader))  # the first batch of the run, the same for every norm at one seed
        found.append(Landscape(measure.landscape_every, series, probe, parts=parts))
    return found


def build_trainer(
    config: RunConfig,
    world: World,
    logger: Logger | None,
    callbacks: list[Any],
    evaluate_every: int | None = None,
    checkpoints: CheckpointFolder | None = None,
) -> Trainer:
    """A Trainer of the ranks there are. `evaluate_every`: batches between evaluations; None = an epoch's."""
    strategy: Strategy
    if world.place.size == 1:
        strategy = OneDevice(device=world.device)
    else:
        strategy = Ranks(
            cluster_environment=JoinedEnvironment(world.place),
            process_group_backend=world.backend,
            broadcast_buffers=False,  # RunningStatistics merges them by a stated policy instead
            gradient_as_bucket_view=True,
        )
    cuda = world.device.type == "cuda"
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=[world.device.index] if cuda and world.place.size == 1 else world.place.local_size,
        num_nodes=world.place.nodes,
        strategy=strategy,
        precision=PRECISION[config.trainer.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        val_check_interval=evaluate_every,
        logger=logger or False,
        callbacks=[bundle(callbacks)],
        log_every_n_steps=0,  # nothing is logged in a step: TrainingCurve writes to the logger itself
        default_root_dir=config.folder,
        plugins=checkpoints,
        enable_checkpointing=False,  # of Lightning's own callback
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders know their rank
        sync_batchnorm=False,  # would rewrite every batch norm: the span is the subject here
    )
    trainer.fit_loop.epoch_loop = StepLoop(trainer)
    # Signals are ours. Its handler of SIGTERM broadcasts wherever a rank happens to be, and then ends the training.
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None
    return trainer
