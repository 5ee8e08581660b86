"""A set of labelled images, decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_BYTES = 16 * 2**30  # decoded; larger sets want streaming, which these loaders are not


@dataclass(frozen=True)
class ImageSet:
    """`images` (N, 3, H, W) uint8, `labels` (N,) int64 with values below `num_classes`."""

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageSet:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first(self, count: int | None, what: str) -> ImageSet:
        """The first `count` images of a shuffle that is the same on every machine; all if None."""
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise ValueError(f"data.{what}={count} is more than the {len(self)} images there are: lower it")
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def digest(self) -> str:
        """What the pixels and labels are, in 16 hexadecimal digits."""
        state = hashlib.sha256(self.images.cpu().numpy().tobytes())
        state.update(self.labels.cpu().numpy().tobytes())
        return state.hexdigest()[:16]


@dataclass(frozen=True)
class DataSplits:
    """What a run trains on and what it is validated on."""

    train: ImageSet
    test: ImageSet

    def to(self, device: torch.device) -> DataSplits:
        return DataSplits(self.train.to(device), self.test.to(device))
