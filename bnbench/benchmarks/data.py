"""The input pipeline: bnbench's loader on one CPU thread against a DataLoader with torchvision's v2 transforms.

All make the same batches of the same images: 32x32, cropped from zero padding, flipped, standardized floats. They take
turns in one process, and which is first alternates. A ratio is taken within a round, an epoch of each in several turns:
a shared machine is faster or slower from one few seconds to the next. Steady state: workers are started and kept
before anything is timed, and a turn begins when they are at rest with their queue full, some 5% of its batches in the
DataLoader's favour. Nobody trains meanwhile, so its workers have all cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import benchmark
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bnbench.data import ImageSet, Normalizer, TrainLoader
from bnbench.span import DEVICE

from .figures import Figure, figure_lines

BATCH, SIDE, PADDING = 128, 32, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
OURS, TENSORS, PILLOW = "bnbench", "DataLoader, tensors", "DataLoader, PIL images"
TARGET = 10.0  # images/s of OURS / TENSORS
TURNS = 5  # of each contender in a round
REST_SECONDS = 0.3  # in which workers fill their queue


@dataclass(frozen=True)
class Settings:
    images: int = 50_000
    rounds: int = 6
    workers: int = 2

    def __post_init__(self) -> None:
        if self.images < BATCH:
            raise ValueError(f"--images={self.images} must be at least {BATCH}, the images of a batch")
        for name in ("rounds", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least 1")

    @property
    def judged(self) -> bool:
        """Whether the target holds for these settings."""
        standard = Settings()
        return (self.images, self.workers) == (standard.images, standard.workers)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images one by one; with `pillow` by way of PIL, as torchvision's CIFAR10 gives them."""

    def __init__(self, data: ImageSet, pillow: bool) -> None:
        self.images, self.labels, self.pillow = data.images, data.labels.tolist(), pillow
        self.arrays = data.images.permute(0, 2, 3, 1).numpy().copy() if pillow else np.empty(0)
        self.transform = v2.Compose(
            [
                *([v2.ToImage()] if pillow else []),
                v2.RandomCrop(SIDE, padding=PADDING),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.arrays[index]) if self.pillow else self.images[index]
        return self.transform(image), self.labels[index]


def measure(settings: Settings) -> dict[str, Any]:
    """Images a second of each contender by round, and their ratios."""
    batches = -(-settings.images // BATCH // TURNS)  # of a turn
    endless = {name: forever(loader) for name, loader in loaders(settings).items()}
    timers = {
        name: benchmark.Timer("next(batches)", globals={"batches": each}, num_threads=1)
        for name, each in endless.items()
    }
    for each in endless.values():
        next(each)  # starts the workers
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(settings.rounds):
        seconds: dict[str, list[float]] = {name: [] for name in timers}  # a batch, by turn
        for turn in range(TURNS):
            for name in list(timers)[:: -1 if turn % 2 else 1]:
                time.sleep(REST_SECONDS)
                seconds[name].append(timers[name].timeit(batches).mean)
        for name in timers:
            found[name].append(BATCH / statistics.fmean(seconds[name]))
    return {
        "settings": asdict(settings),
        "images_per_s": found,
        "figures": [figure.to_json() for figure in figures(found, settings.judged)],
    }


def figures(found: dict[str, list[float]], judged: bool) -> list[Figure]:
    rows = [
        Figure.of(f"{name}: images a second", values, unit="images/s", better="higher")
        for name, values in found.items()
    ]
    for other in (TENSORS, PILLOW):
        ratios = [mine / its for mine, its in zip(found[OURS], found[other], strict=True)]
        target = TARGET if judged and other == TENSORS else None
        rows.append(Figure.of(f"{OURS} / {other}", ratios, target=target, better="higher"))
    return rows


def table(result: dict[str, Any]) -> str:
    settings = result["settings"]
    lines = [
        f"{settings['images']:,} images of {SIDE}x{SIDE}, batches of {BATCH}, {settings['rounds']} rounds; bnbench "
        f"on one thread, DataLoader with {settings['workers']} workers, in steady state"
    ]
    return "\n".join(lines + figure_lines(Figure.from_json(row) for row in result["figures"]))


def loaders(settings: Settings) -> dict[str, TrainLoader | DataLoader]:
    """Of one set of random images, by contender."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (settings.images, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    data = ImageSet(images, torch.arange(settings.images) % 10, num_classes=10)
    normalize = Normalizer(MEAN, STD, torch.device("cpu"), torch.float32)
    place = {"span": DEVICE, "rank": 0, "world_size": 1}
    ours = TrainLoader(data, normalize, "crop_flip", global_batch=BATCH, seed=0, **place)

    def usual(pillow: bool) -> DataLoader:
        return DataLoader(
            Pictures(data, pillow), BATCH, shuffle=True, drop_last=True, num_workers=settings.workers,
            persistent_workers=True,
        )  # fmt: skip

    return {OURS: ours, TENSORS: usual(pillow=False), PILLOW: usual(pillow=True)}


def forever(loader: TrainLoader | DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch after another."""
    epoch = 0
    while True:
        if isinstance(loader, TrainLoader):
            loader.set_epoch(epoch)
        yield from loader
        epoch += 1
