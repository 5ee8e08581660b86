"""All that a run needs, made on every rank before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import os
import random
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bnbench import data, dotted
from bnbench.config import DataConfig, RunConfig, TrainerConfig
from bnbench.launch import Place
from bnbench.models import build_model, logits_of
from bnbench.norms import VirtualBatchNet, initialize_residual, place_norms, swap_norms
from bnbench.training.module import Classifier
from bnbench.training.optim import build_optimizer
from bnbench.training.world import World

TEST_BATCH = 500
COMPILED_LAYERS = 256  # each by itself, where a norm that talks to other ranks breaks the graph
IN_STEPS = ("warmup", "r_end", "d_end")
NOT_THE_LAYERS = ("batch_size", "reference_size", "family", "options")
# What torch says of an image that a network has pooled or strided away.
TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


class Sets(Protocol):
    """Where a run gets its images from."""

    def get(self, config: DataConfig, device: torch.device) -> data.DataSplits: ...


class DataCache:
    """The decoded sets of the last run, kept for the next one of a sweep if it wants the same."""

    def __init__(self) -> None:
        self._held: tuple[DataConfig, torch.device, data.DataSplits] | None = None

    def get(self, config: DataConfig, device: torch.device) -> data.DataSplits:
        if self._held is None or self._held[:2] != (config, device):
            self._held = None  # free the old set before the new one takes its place
            _seed(0)  # a user's own data: the same on every rank, and whatever was trained before
            self._held = (config, device, data.load(config).to(device))
        return self._held[2]


@dataclasses.dataclass
class Setup:
    """All that a run needs, made before anything is written."""

    splits: data.DataSplits
    module: Classifier
    norm_swap: dict[str, Any]  # what was replaced and moved, for the record
    start: dict[str, str]  # what runs of one seed have in common, whatever their norm
    train_loader: data.TrainLoader | data.StreamedTrainLoader
    test_loader: data.TestLoader | data.StreamedTestLoader

    def close(self) -> None:
        """End the processes that stream images."""
        for loader in (self.train_loader, self.test_loader):
            if isinstance(loader, data.StreamedTrainLoader | data.StreamedTestLoader):
                loader.close()


def settle(config: RunConfig, world: World) -> None:
    """Process-wide state, set by every run so that none inherits another's."""
    threads = config.trainer.threads or _share_of_cores(world.place)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(
        threads
    )  # else Lightning chooses another number in a world's first run
    torch.backends.cuda.matmul.allow_tf32 = config.trainer.tf32
    torch.backends.cudnn.allow_tf32 = config.trainer.tf32
    torch.backends.cudnn.benchmark = config.trainer.cudnn_benchmark
    torch.backends.cudnn.deterministic = config.trainer.deterministic
    if config.trainer.compile:
        torch.compiler.reset()  # what it keeps of a line of code counts for all runs of this process
        torch._dynamo.config.recompile_limit = COMPILED_LAYERS
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it goes on uncompiled, silently
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its advice is on DataLoaders' worker processes; ours hold decoded images, or have as many as data.workers says.
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings(
        "ignore", message="`broadcast_buffers` is deprecated"
    )  # what replaces it is no match yet
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")


def _share_of_cores(place: Place) -> int:
    """Cores of a rank. A task of srun may be bound to its own already; how many is what the job asked for."""
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("SLURM_CPUS_PER_TASK") if place.origin == "srun" else None
    return min(cores, int(asked)) if asked else max(1, cores // place.local_size)


def check_device(trainer: TrainerConfig, device: torch.device) -> None:
    """Raise ValueError for a precision or flag that this device does not have."""
    if device.type == "cuda":
        if trainer.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise ValueError(
                f"trainer.precision=bf16: {name} has no bf16 arithmetic; set trainer.precision=fp32"
            )
        return
    for flag in ("tf32", "cudnn_benchmark", "cuda_graphs"):
        if getattr(trainer, flag):
            raise ValueError(
                f"trainer.{flag}=true would be ignored on {device.type}: it is for GPUs; set trainer.{flag}=false"
            )


@dataclasses.dataclass
class _Loaded:
    """What a run reads, before its network is built."""

    splits: data.DataSplits
    normalize: data.Normalizer
    train_loader: data.TrainLoader | data.StreamedTrainLoader
    test_loader: data.TestLoader | data.StreamedTestLoader


def set_up(config: RunConfig, world: World, cache: Sets) -> Setup:
    """Call it on every rank. Raises SetupError on all of them for a user's mistake that any of them finds."""
    # Two steps: the second has collectives, in which the others would wait for a rank whose files are missing.
    loaded = world.together(partial(_load, config, world, cache))
    return world.together(partial(_build, config, world, loaded))


def _load(config: RunConfig, world: World, cache: Sets) -> _Loaded:
    """Everything that may go wrong on one rank alone. No collective."""
    check_device(config.trainer, world.device)
    for key in ("model", "norm", "data"):
        part = getattr(config, key)
        if dotted.is_dotted(part.name):
            dotted.check_unchanged(f"{key}.name", part.name, part.source)
    splits = cache.get(config.data, world.device)
    normalize = data.Normalizer(
        config.data.mean, config.data.std, world.device, _dtype(config), _layout(config)
    )
    train_loader, test_loader = data.make_loaders(
        config.data,
        splits,
        normalize,
        global_batch=config.global_batch,
        seed=config.seed,
        span=config.span,
        accumulate=config.recipe.accumulate,
        rank=world.place.rank,
        world_size=world.place.size,
        test_batch=TEST_BATCH,
    )
    check_evaluations(config, train_loader.steps)
    return _Loaded(splits, normalize, train_loader, test_loader)


def _build(config: RunConfig, world: World, loaded: _Loaded) -> Setup:
    splits, train_loader = loaded.splits, loaded.train_loader
    _seed(config.seed)  # after the data, which may have drawn numbers of its own
    model = build_model(config.model.name, splits.train.num_classes, **config.model.builder_options())
    aux_weight = getattr(model, "aux_weight", 0.0)
    swap = swap_norms(model, config.kind, **norm_options(config, world, config.epochs * len(train_loader)))
    norm_swap = swap.as_dict() | {"placement": {"placement": "before"}}  # as built: nothing to trace
    if config.norm.placement == "after":
        norm_swap["placement"] = place_norms(model, "after").as_dict()
    if config.recipe.zero_gamma:
        norm_swap["zero_gamma"] = _zero_gamma(model, config)
    if config.norm.reference_size is not None:
        chosen = data.reference_images(len(splits.train), config.norm.reference_size, config.seed)
        model = VirtualBatchNet(model, loaded.normalize(splits.train.pixels(chosen).to(world.device)).cpu())
    _probe(model, config, world, splits.train.shape, splits.train.num_classes)
    model = model.to(memory_format=_layout(config))  # type: ignore[call-overload]
    start = {
        "weights_sha256": start_digest(model),
        "order_sha256": data.order_digest(len(splits.train), config.global_batch, config.seed),
    }
    if config.trainer.compile:
        model.compile()
    # The ranks have built one network, and drop different parts of it.
    _seed(data.dropout_seed(config.seed, world.place.rank))
    if _dtype(config) == torch.float64:
        model = model.double()  # Lightning would do it after it has read a checkpoint, into fp32
    recipe = partial(build_optimizer, config=config, steps_per_epoch=train_loader.steps)
    module = Classifier(model, recipe, config.recipe, aux_weight, config.trainer.cuda_graphs)
    return Setup(splits, module, norm_swap, start, train_loader, loaded.test_loader)


def _dtype(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.trainer.precision == "fp64" else torch.float32


def _layout(config: RunConfig) -> torch.memory_format:
    return torch.channels_last if config.trainer.channels_last else torch.contiguous_format


def _seed(seed: int) -> None:
    """Of what a user's own code may draw from, too."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def check_evaluations(config: RunConfig, steps: int) -> None:
    """Raise ValueError unless the evaluations of an epoch lie evenly in it, the last at its end."""
    if steps % config.evals_per_epoch:
        choices = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
        raise ValueError(
            f"evals_per_epoch={config.evals_per_epoch} does not divide the {steps} steps of an epoch, and the last "
            f"evaluation must be at its end: choose {choices}"
        )


def _zero_gamma(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    if config.norm.init not in (None, "none"):
        raise ValueError(
            f"recipe.zero_gamma=true with norm.init={config.norm.init}: both say how residual branches start; "
            "set norm.init=none, or recipe.zero_gamma=false"
        )
    started = initialize_residual(model, "zero_gamma")
    if not started.weights:
        raise ValueError(
            f"recipe.zero_gamma=true with model={config.model.name}: it has no residual branch that ends in a "
            "norm; set recipe.zero_gamma=false"
        )
    return started.as_dict()


def start_digest(model: nn.Module) -> str:
    """What the convolutions and linear layers start from: equal for every norm at one seed."""
    state = hashlib.sha256()
    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            state.update(layer.weight.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def norm_options(config: RunConfig, world: World, total_steps: int) -> dict[str, Any]:
    """The settings of the Hydra group, with the span in the layer's own terms, where it is not a device's."""
    norm, span = config.norm, config.span
    options = {key: getattr(norm, key) for key in norm.reads if key not in NOT_THE_LAYERS}
    if options.get("statistics") == "precise":
        options["statistics"] = "mean"  # of the averages that a layer keeps between evaluations
    options |= norm.options or {}
    if span.ghosts > 1:
        options["ghosts"] = span.ghosts
    if span.ranks > 1:
        options["process_group"] = world.group(span.ranks)
    if norm.in_fractions:
        options["total_steps"] = total_steps
    else:  # a layer counts its forward passes: `accumulate` in a step
        options |= {key: options[key] * config.recipe.accumulate for key in IN_STEPS if key in options}
    return options


def _probe(model: nn.Module, config: RunConfig, world: World, shape: Sequence[int], num_classes: int) -> None:
    """Raise ValueError if a step of this model, norm and batch is none: one value a channel, maps that end, logits
    of other classes than the data's.

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
            logits = logits_of(probed(images))[0]
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TOO_SMALL):
            raise
        raise ValueError(
            f"model={config.model.name} with norm={config.norm.name} on {config.per_device_batch} image(s) a rank "
            f"of {shape[1]}x{shape[2]}: {str(error).splitlines()[0]}"
        ) from None
    if tuple(logits.shape) != (len(images), num_classes):
        raise ValueError(
            f"model={config.model.name} gives {tuple(logits.shape)} for {len(images)} images of "
            f"data={config.data.name}, which has {num_classes} classes: it must give ({len(images)}, {num_classes}) "
            "logits"
        )
