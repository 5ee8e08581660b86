"""One run on one rank of a joined world: data -> model -> norm swap -> module -> Trainer -> record."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn

from bnbench import data
from bnbench.config import DataConfig, RunConfig
from bnbench.models import build_model
from bnbench.norms import SwapReport, merge_running_statistics, swap_norms
from bnbench.provenance import provenance
from bnbench.records import EPOCHS, Record, Status, digest, write_atomic, write_record
from bnbench.training.callbacks import Epoch, History, RunningStatistics, TrainingCurve, bundle
from bnbench.training.module import Classifier
from bnbench.training.optim import build_optimizer
from bnbench.training.tracking import describe, finish_tracking, start_tracking
from bnbench.training.world import JoinedEnvironment, World

WEIGHTS = "weights.pt"
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}
LAST_EPOCHS = 5  # `final` is their median, in runs of at least twice as many
TEST_BATCH = 500

Report = Callable[[Mapping[str, Any]], None]


class DataCache:
    """The decoded sets of the last run, kept for the next one of a sweep if it wants the same."""

    def __init__(self) -> None:
        self._held: tuple[DataConfig, torch.device, data.DataSplits] | None = None

    def get(self, config: DataConfig, device: torch.device) -> data.DataSplits:
        if self._held is None or self._held[:2] != (config, device):
            self._held = None  # free the old set before the new one takes its place
            self._held = (config, device, data.load(config).to(device))
        return self._held[2]


@dataclasses.dataclass
class Setup:
    """All that a run needs, made before anything is written."""

    splits: data.DataSplits
    module: Classifier
    swap: SwapReport
    train_loader: data.TrainLoader
    test_loader: data.TestLoader


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
        trainer = build_trainer(
            config, world, logger, [RunningStatistics(statistics_policy(config)), curve, history]
        )
        fit_started = time.perf_counter()
        trainer.fit(setup.module, setup.train_loader, setup.test_loader)
        fit_seconds = time.perf_counter() - fit_started
        model = setup.module.model
        merge_running_statistics(model, statistics_policy(config))
        diverged = _divergence(curve, history.epochs)
        status: Status = "completed" if diverged is None else "diverged"
        if world.leads:
            record = Record(
                schema=1,
                id=digest(config.identity()),
                name=config.run_name,
                identity=config.identity(),
                status=status,
                config=dataclasses.asdict(config),
                metrics=_metrics(history.epochs, model, status),
                timings=_timings(history.epochs, fit_seconds, fit_started - started, len(setup.train_loader)),
                provenance=_provenance(config, world, setup.splits),
                error=diverged,
                norm_swap=setup.swap.as_dict(),
                wandb=describe(logger),
            )
            record.metrics["weights_sha256"] = _save_weights(config, model)
            write_record(config.folder, record)
        return status
    finally:
        finish_tracking(logger, record)


def settle(config: RunConfig, world: World) -> None:
    """Process-wide state, set by every run so that none inherits another's."""
    torch.set_num_threads(config.trainer.threads or max(1, _cores() // world.place.local_size))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its advice is for DataLoaders with worker processes; ours hold decoded images.
    warnings.filterwarnings("ignore", module="lightning")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


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


def set_up(config: RunConfig, world: World, cache: DataCache) -> Setup:
    splits = cache.get(config.data, world.device)
    torch.manual_seed(config.seed)  # after the data, which may have drawn numbers of its own
    options = dataclasses.asdict(config.model)
    model = build_model(options.pop("name"), splits.train.num_classes, **options)
    swap = swap_norms(model, config.kind, **_norm_options(config, world))
    dtype = torch.float64 if config.trainer.precision == "fp64" else torch.float32
    normalize = data.Normalizer(config.data.mean, config.data.std, world.device, dtype)
    place = {"rank": world.place.rank, "world_size": world.place.size}
    train_loader = data.TrainLoader(
        splits.train,
        normalize,
        config.data.augment,
        global_batch=config.global_batch,
        seed=config.seed,
        span=config.span,
        **place,
    )
    test_loader = data.TestLoader(splits.test, normalize, batch=TEST_BATCH, **place)
    recipe = partial(
        build_optimizer,
        config=config.optim,
        global_batch=config.global_batch,
        epochs=config.epochs,
        steps_per_epoch=len(train_loader),
    )
    return Setup(splits, Classifier(model, recipe), swap, train_loader, test_loader)


def _norm_options(config: RunConfig, world: World) -> dict[str, Any]:
    """The settings of the Hydra group, with the span in the layer's own terms."""
    uses = set(config.norm.info.uses)
    options = {key: getattr(config.norm, key) for key in uses - {"batch_size", "statistics"}}
    if "statistics" in uses:
        options["statistics"] = config.norm.statistics
        options["ghosts"] = config.span.ghosts
        options["process_group"] = world.group(config.span.ranks) if config.span.ranks > 1 else None
    return {key: value for key, value in options.items() if value is not None}


def statistics_policy(config: RunConfig) -> str:
    return config.norm.statistics or "mean"


def _make_folder(config: RunConfig, world: World) -> None:
    if not world.leads:
        return
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
        (config.folder / EPOCHS).unlink(missing_ok=True)  # of an attempt that did not finish
    except OSError as error:
        raise ValueError(
            f"{config.folder} cannot be made ({error.strerror}): choose another dir=..."
        ) from None


def build_trainer(
    config: RunConfig, world: World, logger: WandbLogger | None, callbacks: list[Any]
) -> Trainer:
    strategy: Strategy
    if world.place.size == 1:
        strategy = SingleDeviceStrategy(device=world.device)
    else:
        strategy = DDPStrategy(
            cluster_environment=JoinedEnvironment(world.place),
            process_group_backend=world.backend,
            broadcast_buffers=False,  # RunningStatistics merges them by a stated policy instead
            gradient_as_bucket_view=True,
        )
    cuda = world.device.type == "cuda"
    return Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=[world.device.index] if cuda and world.place.size == 1 else world.place.local_size,
        num_nodes=world.place.nodes,
        strategy=strategy,
        precision=PRECISION[config.trainer.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        logger=logger or False,
        callbacks=[bundle(callbacks)],
        log_every_n_steps=0,  # nothing is logged in a step: TrainingCurve writes to the logger itself
        default_root_dir=config.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders know their rank
        sync_batchnorm=False,  # would rewrite every batch norm: the span is the subject here
    )


def _divergence(curve: TrainingCurve, epochs: list[Epoch]) -> str | None:
    """Where a run stopped being finite, None if it did not: in its training loss, or after its last step."""
    if curve.diverged_at is not None:
        return f"training loss not finite at step {curve.diverged_at}"
    steps = (epoch.step for epoch in epochs if not math.isfinite(epoch.val_loss))
    return next((f"validation loss not finite after step {step}" for step in steps), None)


def _metrics(epochs: list[Epoch], model: nn.Module, status: Status) -> dict[str, Any]:
    """`final` is the last epoch, from 10 epochs on the median of the last 5; never the best."""
    metrics: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    last = epochs[-LAST_EPOCHS:] if len(epochs) >= 2 * LAST_EPOCHS else epochs[-1:]
    for name, key in {
        "final_val_error": "val_error",
        "final_val_loss": "val_loss",
        "train_error": "train_error",
        "train_loss": "train_loss",
    }.items():
        done = status == "completed"
        metrics[name] = statistics.median(getattr(epoch, key) for epoch in last) if done else None
    return metrics


def _timings(
    epochs: list[Epoch], fit_seconds: float, setup_seconds: float, steps_per_epoch: int
) -> dict[str, Any]:
    """Seconds; the rate is the median epoch's, without the first where there are more: it warms up."""
    timings: dict[str, Any] = {"setup_seconds": setup_seconds, "fit_seconds": fit_seconds}
    steady = epochs[1:] or epochs
    if steady:
        timings["images_per_s"] = statistics.median(epoch.images_per_s for epoch in steady)
        train_seconds = statistics.median(epoch.train_seconds for epoch in steady)
        timings["step_ms"] = 1000 * train_seconds / steps_per_epoch
    return timings


def _provenance(config: RunConfig, world: World, splits: data.DataSplits) -> dict[str, Any]:
    cuda = world.device.type == "cuda"
    return provenance() | {
        "device": {
            "type": world.device.type,
            "name": torch.cuda.get_device_name(world.device) if cuda else None,
            "threads": torch.get_num_threads(),
        },
        "world": {
            "size": world.place.size,
            "nodes": world.place.nodes,
            "backend": world.backend,
            "origin": world.place.origin,
            "span": dataclasses.asdict(config.span),
        },
        "statistics_policy": config.norm.statistics,
        "memory_format": "contiguous",
        "dtype": config.trainer.precision,
        "flags": {
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn": torch.backends.cudnn.version(),
        },
        "data": {
            "train_images": len(splits.train),
            "test_images": len(splits.test),
            "classes": splits.train.num_classes,
            "train_sha256": splits.train.digest(),
            "test_sha256": splits.test.digest(),
        },
    }


def _save_weights(config: RunConfig, model: nn.Module) -> str:
    """Keep the weights if asked, and return what tells two trainings apart: the digest of every tensor."""
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    if config.trainer.save_weights:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(config.folder / WEIGHTS, buffer.getvalue())
    digest_ = hashlib.sha256()
    for name, tensor in state.items():
        digest_.update(name.encode())
        digest_.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest_.hexdigest()
