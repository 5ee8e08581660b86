"""One run on one rank of a joined world: data -> model -> norm swap -> module -> Trainer -> record."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from bnbench.norms import VirtualBatchNet, place_norms, swap_norms
from bnbench.provenance import provenance
from bnbench.records import EPOCHS, Record, Status, digest, write_atomic, write_record
from bnbench.training.callbacks import (
    Epoch,
    FreezeStatistics,
    History,
    MergeEveryStep,
    RunningStatistics,
    TrainingCurve,
    bundle,
)
from bnbench.training.module import Classifier
from bnbench.training.optim import build_optimizer
from bnbench.training.tracking import describe, finish_tracking, start_tracking
from bnbench.training.world import JoinedEnvironment, World

WEIGHTS = "weights.pt"
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}
LAST_EPOCHS = 5  # `final` is their median, in runs of at least twice as many
TEST_BATCH = 500
NOT_THE_LAYERS = ("batch_size", "reference_size", "family", "options")
# What torch says of an image that a network has pooled or strided away.
TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")

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
    norm_swap: dict[str, Any]  # what was replaced and moved, for the record
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
        running = RunningStatistics(statistics_policy(config))
        callbacks = [running, *norm_callbacks(config, len(setup.train_loader)), curve, history]
        trainer = build_trainer(config, world, logger, callbacks)
        fit_started = time.perf_counter()
        trainer.fit(setup.module, setup.train_loader, setup.test_loader)
        fit_seconds = time.perf_counter() - fit_started
        model = setup.module.model
        running.merge(model, trainer.global_step)
        diverged = _divergence(curve, running.poisoned, history.epochs)
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
                norm_swap=setup.norm_swap,
                wandb=describe(logger),
            )
            # What is not finite is nobody's checkpoint.
            record.metrics["weights_sha256"] = _save_weights(config, model) if diverged is None else None
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
    torch.manual_seed(config.seed)  # after the data, which may have drawn numbers of its own
    model = build_model(config.model.name, splits.train.num_classes, **config.model.builder_options())
    aux_weight = getattr(model, "aux_weight", 0.0)
    swap = swap_norms(model, config.kind, **_norm_options(config, world, config.epochs * len(train_loader)))
    norm_swap = swap.as_dict() | {"placement": {"placement": "before"}}  # as built: nothing to trace
    if config.norm.placement == "after":
        norm_swap["placement"] = place_norms(model, "after").as_dict()
    if config.norm.reference_size is not None:
        chosen = data.reference_images(len(splits.train), config.norm.reference_size, config.seed)
        model = VirtualBatchNet(model, normalize(splits.train.images[chosen.to(world.device)]).cpu())
    _probe(model, config, world, splits.train.images.shape[1:])
    recipe = partial(
        build_optimizer,
        config=config.optim,
        global_batch=config.global_batch,
        epochs=config.epochs,
        steps_per_epoch=len(train_loader),
    )
    return Setup(splits, Classifier(model, recipe, aux_weight), norm_swap, train_loader, test_loader)


def _norm_options(config: RunConfig, world: World, total_steps: int) -> dict[str, Any]:
    """The settings of the Hydra group, with the span in the layer's own terms, where it is not a device's."""
    norm, span = config.norm, config.span
    options = {key: getattr(norm, key) for key in norm.reads if key not in NOT_THE_LAYERS}
    options |= norm.options or {}
    if span.ghosts > 1:
        options["ghosts"] = span.ghosts
    if span.ranks > 1:
        options["process_group"] = world.group(span.ranks)
    if norm.in_fractions:
        options["total_steps"] = total_steps
    return options


def _probe(model: nn.Module, config: RunConfig, world: World, shape: Sequence[int]) -> None:
    """Raise ValueError if a step of this model, norm and batch is none: one value a channel, maps that end.

    One training forward at the true shape, because what a layer sees depends on the whole network, on the
    batch and on heads that only training has. Of a copy, since it moves running statistics, counters and
    whatever a user's own layer keeps; on the device and on every rank, since layers may talk to each other.
    It costs a third of a step and, before there are gradients, less memory than one.
    """
    images = torch.zeros(config.per_device_batch, *shape, device=world.device)
    probed = copy.deepcopy(model).to(world.device, images.dtype).train()
    cuda = [world.device] if world.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda):  # dropout draws
            probed(images)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TOO_SMALL):
            raise
        raise ValueError(
            f"model={config.model.name} with norm={config.norm.name} on {config.per_device_batch} image(s) a rank "
            f"of {shape[1]}x{shape[2]}: {str(error).splitlines()[0]}"
        ) from None


def statistics_policy(config: RunConfig) -> str:
    return config.norm.statistics or "mean"


def norm_callbacks(config: RunConfig, steps_per_epoch: int) -> list[Any]:
    """What some norms need done between steps."""
    norm, found = config.norm, list[Any]()
    if config.kind == "brn" and config.trainer.world_size > 1:
        found.append(MergeEveryStep())
    if config.kind == "frozen" and norm.after:
        total = config.epochs * steps_per_epoch
        found.append(FreezeStatistics(norm.after, total, statistics_policy(config)))
    return found


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


def _divergence(curve: TrainingCurve, poisoned: str | None, epochs: list[Epoch]) -> str | None:
    """Where a run stopped being finite, None if it did not: its training loss, running statistics, or after."""
    if curve.diverged_at is not None:
        return f"training loss not finite at step {curve.diverged_at}"
    if poisoned is not None:
        return poisoned
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
        "statistics_policy": statistics_policy(config) if config.nbs is not None else None,
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
            **({} if config.data.label is None else {"label": config.data.label}),
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
