"""A set of labelled images, decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .files import FileSet

MAX_BYTES = 16 * 2**30  # decoded; larger sets are streamed (files.py)


@dataclass(frozen=True)
class ImageSet:
    """`images` (N, 3, H, W) uint8, `labels` (N,) int64 with values below `num_classes`.

    `sources` (N,) int64, where several images were made from one picture: they have its number. A held-out
    set takes all of a picture's images or none.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    sources: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageSet:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W) as the model sees an image."""
        return tuple(self.images.shape[1:])

    def pixels(self, chosen: Tensor) -> Tensor:
        """(len(chosen), 3, H, W) uint8, on the device of the set."""
        return self.images[chosen.to(self.images.device)]

    def take(self, chosen: Tensor) -> ImageSet:
        sources = None if self.sources is None else self.sources[chosen]
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], sources=sources)

    def first(self, count: int | None, what: str) -> ImageSet:
        """The first `count` images of a shuffle that is the same on every machine; all if None."""
        chosen = first_of(len(self), count, what)
        return self if chosen is None else self.take(chosen)

    def digest(self) -> str:
        """What the pixels and labels are, in 16 hexadecimal digits."""
        state = hashlib.sha256(self.images.cpu().numpy().tobytes())
        state.update(self.labels.cpu().numpy().tobytes())
        return state.hexdigest()[:16]


def first_of(images: int, count: int | None, what: str) -> Tensor | None:
    """Indices of the first `count` of a shuffle of so many images, the same on every machine; None for all.

    Raises ValueError, naming the key data.`what`, if there are not as many.
    """
    if count is None or count == images:
        return None
    if count > images:
        raise ValueError(f"data.{what}={count} is more than the {images} images there are: lower it")
    return torch.randperm(images, generator=torch.Generator().manual_seed(0))[:count]


@dataclass(frozen=True)
class DataSplits:
    """What a run trains on, the test set, and the training images held out for tuning where there are any."""

    train: ImageSet | FileSet
    test: ImageSet | FileSet
    holdout: ImageSet | FileSet | None = None

    @property
    def validation(self) -> ImageSet | FileSet:
        """What a run is validated on: with a holdout, nothing reads the test set."""
        return self.test if self.holdout is None else self.holdout

    def to(self, device: torch.device) -> DataSplits:
        holdout = None if self.holdout is None else self.holdout.to(device)
        return DataSplits(self.train.to(device), self.test.to(device), holdout)
