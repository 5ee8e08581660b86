"""All that a run needs, made on every rank before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bnbench import data
from bnbench.config import DataConfig, RunConfig
from bnbench.models import build_model
from bnbench.norms import VirtualBatchNet, place_norms, swap_norms
from bnbench.training.module import Classifier
from bnbench.training.optim import build_optimizer
from bnbench.training.world import World

TEST_BATCH = 500
NOT_THE_LAYERS = ("batch_size", "reference_size", "family", "options")
# What torch says of an image that a network has pooled or strided away.
TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


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
    swap = swap_norms(model, config.kind, **norm_options(config, world, config.epochs * len(train_loader)))
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


def norm_options(config: RunConfig, world: World, total_steps: int) -> dict[str, Any]:
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
