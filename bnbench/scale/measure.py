"""On every rank of a world: what messages and training steps take among the first 2, 4, ... ranks of it.

Rounds visit all that is measured in turn, so that what disturbs the machine for a while disturbs all alike. Images are
random: a step takes as long with any.
"""

from __future__ import annotations

import copy
import gc
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnbench import data
from bnbench.config import RunConfig
from bnbench.models import build_model, logits_of
from bnbench.norms import SyncBatchNorm2d, swap_norms
from bnbench.norms.places import norm_places
from bnbench.provenance import cpu_model
from bnbench.training.optim import build_optimizer
from bnbench.training.setup import check_device, settle
from bnbench.training.world import World

from .cost_model import KINDS, Kind
from .messages import SIZES, Messages, agreed, slowest, synchronize

NORMS = ("bn", "sync")
BLOCK_SECONDS, MOST_STEPS = 0.25, 50  # of one kind of step in a round


@dataclass(frozen=True)
class Subject:
    """What is trained: `model` before any swap, on random images of (3, H, W)."""

    config: RunConfig
    model: nn.Module
    shape: tuple[int, ...]
    classes: int
    device: torch.device


def measure_as_rank(
    config: RunConfig, world: World, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """All that `measured.Measured` reads, of the slowest rank each. Call it on every rank of a world.

    Raises SetupError, on all ranks, for data that are not to be had.
    """
    check_device(config.trainer, world.device)
    settle(config, world)
    warnings.filterwarnings(
        "ignore", message=".*broadcast_buffers.*"
    )  # what replaces it is not in torch 2.11
    shape, classes = _images(config, world)
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, classes, **config.model.builder_options())
    cuda = world.device.type == "cuda"
    found: dict[str, Any] = workload(model) | {
        "device": world.device.type,
        "device_name": torch.cuda.get_device_name(world.device) if cuda else cpu_model(),
        "backend": world.backend,
        "ranks": world.place.size,
        "node": world.place.local_size,
        "threads": torch.get_num_threads(),
        "overlaps": cuda,
        "worlds": [],
        "load_before_and_after": [round(os.getloadavg()[0], 2)],
    }
    subject, alone = Subject(config, model, shape, classes, world.device), world.group(1)
    for size in sizes_at_hand(world.place.size, world.place.local_size):
        group = world.group(size)
        if world.place.rank < size:
            say(f"measuring {size} of {world.place.size} rank(s), {rounds} round(s)")
            found["worlds"].append(_measure_world(subject, group, alone, rounds))
        dist.barrier()  # the others wait here: they must not take part
    found["load_before_and_after"].append(round(os.getloadavg()[0], 2))
    return found


def describe(config: RunConfig) -> dict[str, Any]:
    """What the model sends, without a world. ValueError for data that are not to be had."""
    train = data.load(config.data).train
    return workload(build_model(config.model.name, train.num_classes, **config.model.builder_options()))


def workload(model: nn.Module) -> dict[str, Any]:
    """What the cost model asks of a model: the channels of each norm, and the bytes of its gradients."""
    return {
        "channels": [place.num_features for place in norm_places(model)[0]],
        "gradient_bytes": sum(p.nbytes for p in model.parameters() if p.requires_grad),
    }


def sizes_at_hand(ranks: int, node: int) -> list[int]:
    """Worlds of the first ranks to measure: a node, all, and the powers of two between that divide them."""
    doubled = {2**n for n in range(1, ranks.bit_length()) if ranks % 2**n == 0}
    sizes = {size for size in doubled | {node, ranks} if size <= node or size % node == 0}
    return sorted(sizes - {1} or {1})


def _images(config: RunConfig, world: World) -> tuple[tuple[int, ...], int]:
    """The shape of the data's images and the number of classes, as rank 0 finds them."""
    known = problem = None
    if world.leads:
        try:
            train = data.load(config.data).train
            known = (tuple(train.shape), train.num_classes)
        except ValueError as error:
            problem = str(error)
    world.agree(problem)
    return world.from_leader(known)


def _measure_world(subject: Subject, group: Any, alone: Any, rounds: int) -> dict[str, Any]:
    """One entry of `worlds`, of the ranks of `group`; `alone` holds this rank only."""
    steps = {f"{norm} alone": TrainingStep(subject, norm, alone) for norm in NORMS}
    # As long as lies between two collectives of a step, forward and backward.
    layers = len(workload(subject.model)["channels"])
    gap = agreed(steps["bn alone"].warmed_up() / (2 * layers), group)
    messages = {"alone": Messages(alone, subject.device, gap, SIZES[:1])}
    if group is not alone:
        steps |= {norm: TrainingStep(subject, norm, group) for norm in NORMS}
        messages["messages"] = Messages(group, subject.device, gap)
    seconds = {name: agreed(step.warmed_up(), group) for name, step in steps.items()}
    counts = {name: min(MOST_STEPS, max(1, round(BLOCK_SECONDS / each))) for name, each in seconds.items()}
    sent: dict[str, list[dict[Kind, dict[int, float]]]] = {name: [] for name in messages}
    took: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, each in messages.items():
                sent[name].append(each.visit())
            for name, step in steps.items():
                dist.barrier(group)
                took[name].append(slowest(step.seconds(counts[name]), group, subject.device))
    finally:
        gc.enable()
    by_size = {name: {kind: _by_size(visits, kind) for kind in KINDS} for name, visits in sent.items()}
    return {
        "ranks": dist.get_world_size(group),
        "alone": {kind: next(iter(sizes.values())) for kind, sizes in by_size["alone"].items()},
        "messages": by_size.get("messages", {kind: {} for kind in KINDS}),
        "steps": took,
    }


def _by_size(visits: list[dict[Kind, dict[int, float]]], kind: Kind) -> dict[int, list[float]]:
    return {payload: [visit[kind][payload] for visit in visits] for payload in visits[0][kind]}


class TrainingStep:
    """A bare training step by DDP over `group`; `sync`: SyncBN spans the group, `bn`: BN on each rank."""

    def __init__(self, subject: Subject, norm: str, group: Any) -> None:
        config, self.device = subject.config, subject.device
        model = copy.deepcopy(subject.model)
        self.aux_weight = getattr(model, "aux_weight", 0.0)
        options: dict[str, Any] = {"eps": config.norm.eps, "momentum": config.norm.momentum}
        if norm == "sync":
            swap_norms(model, "syncbn", process_group=group, **options)
            for layer in model.modules():
                if isinstance(layer, SyncBatchNorm2d):
                    layer.__class__ = _Spanning
        else:
            swap_norms(model, "bn", **options)
        layout = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
        model = model.to(self.device).to(memory_format=layout).train()  # type: ignore[call-overload]
        self.optimizer = build_optimizer(model, config, steps_per_epoch=1)[0]
        self.model = DistributedDataParallel(
            model, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        images = torch.randn(config.per_device_batch, *subject.shape)
        self.images = images.to(self.device).contiguous(memory_format=layout)
        self.labels = torch.randint(subject.classes, (len(images),)).to(self.device)
        self.half = config.trainer.precision == "bf16"

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits, *others = logits_of(self.model(self.images))
            loss = F.cross_entropy(logits, self.labels)
            for other in others:
                loss = loss + self.aux_weight * F.cross_entropy(other, self.labels)
        loss.backward()
        self.optimizer.step()

    def seconds(self, count: int) -> float:
        """Of a step, the mean of `count` after one that is not timed."""
        self()
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(count):
            self()
        synchronize(self.device)
        return (time.perf_counter() - started) / count

    def warmed_up(self) -> float:
        """Seconds of a third step: the first is slow, and DDP orders its buckets anew behind it."""
        self()
        return self.seconds(1)


class _Spanning(SyncBatchNorm2d):
    """With all of its arithmetic in a group of one rank too, where SyncBatchNorm2d would be plain BN."""

    @property
    def spans(self) -> bool:
        return True
