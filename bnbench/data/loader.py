"""Loaders over sets that lie decoded on the training device; Lightning takes them as any iterable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bnbench.span import Span

from .augment import Augment
from .files import FileSet
from .images import ImageSet
from .order import AUGMENTATION, epoch_steps, generator

Batch = tuple[Tensor, Tensor]


class Normalizer:
    """uint8 (N, 3, H, W) to standardized floats in a memory format: one fused multiply-add, in place."""

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        mean_, std_ = (torch.tensor(v, dtype=dtype, device=device).view(1, 3, 1, 1) for v in (mean, std))
        self.scale, self.shift, self.dtype = 1 / (255 * std_), -mean_ / std_, dtype
        self.memory_format = memory_format

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.dtype, memory_format=self.memory_format)
        if images.shape[1:] != self.scale.shape[1:]:
            # Written out for a whole image: broadcast over images alone, it takes a third of the time on CPU.
            self.scale, self.shift = (
                each[:, :, :1, :1].expand(1, *images.shape[1:]).contiguous(memory_format=self.memory_format)
                for each in (self.scale, self.shift)
            )
        return torch.addcmul(self.shift, images, self.scale, out=images)


class StepLoader(ABC):
    """The order of training: this rank's shares of the current epoch's global steps, without the partial batch.

    With `accumulate` = k, part p of a step is its images i with i mod k = p on every world, and a rank takes its share
    of them as it would of a step of their own: statistics groups are the same, and so is the order in which running
    statistics see them.
    Raises ValueError if the set holds fewer images than a step takes.
    """

    def __init__(
        self,
        data: ImageSet | FileSet,
        normalize: Normalizer,
        *,
        global_batch: int,
        seed: int,
        span: Span,
        rank: int,
        world_size: int,
        accumulate: int = 1,
    ) -> None:
        if len(data) < global_batch:
            raise ValueError(
                f"global_batch={global_batch} is more than the {len(data)} training images: lower it, or "
                "raise data.max_train"
            )
        self.num_images, self.normalize = len(data), normalize
        self.global_batch, self.seed = global_batch, seed
        self.places = step_places(span, rank, world_size, accumulate)
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.num_images // self.global_batch

    def __len__(self) -> int:
        return self.steps * len(self.places)

    @property
    def sampler(self) -> StepLoader:
        return self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    @abstractmethod
    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `first` on."""

    def shares(self, first: int = 0) -> Iterator[tuple[int, Tensor, slice]]:
        """Of each batch from number `first` on: its step since the start of training, the indices of that step's images
        (global_batch,), and the places in it that are this rank's."""
        steps = epoch_steps(self.num_images, self.global_batch, self.seed, self.epoch)
        begun, within = divmod(first, len(self.places))
        for step, indices in enumerate(steps[begun:], start=self.epoch * self.steps + begun):
            for place in self.places[within:]:
                yield step, indices, place
            within = 0


class TrainLoader(StepLoader):
    """Batches of a set that lies decoded on the training device, augmented there."""

    def __init__(self, data: ImageSet, normalize: Normalizer, augment: str, **order: Any) -> None:
        super().__init__(data, normalize, **order)
        self.data, self.augment = data, Augment(data.images, augment)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        labels = self.data.labels
        for step, indices, place in self.shares(first):
            images = self.augment(indices, place, generator(self.seed, AUGMENTATION, step))
            yield self.normalize(images), labels[indices[place].to(labels.device)]


def step_places(span: Span, rank: int, world_size: int, accumulate: int) -> list[slice]:
    """Which images of a global step this rank takes, in each of its `accumulate` parts."""
    first = accumulate * span.residue(rank, world_size)
    return [slice(first + part, None, accumulate * world_size) for part in range(accumulate)]


class TestLoader:
    """Every image of the set exactly once over the ranks of any world: rank r takes those at r mod W.

    Never padded, so the last ranks may take one image less. Raises ValueError if one would take none.
    """

    __test__ = False  # pytest: no test class

    def __init__(
        self, data: ImageSet, normalize: Normalizer, *, batch: int, rank: int, world_size: int
    ) -> None:
        if len(data) < world_size:
            raise ValueError(
                f"{len(data)} test images do not reach for {world_size} ranks: raise data.max_test, or "
                "use fewer ranks"
            )
        self.images, self.labels = data.images[rank::world_size], data.labels[rank::world_size]
        self.normalize, self.batch = normalize, batch

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True):
            yield self.normalize(images), labels
