"""A set of labelled images that stay on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from .images import first_of

LARGER = (
    256 / 224
)  # evaluation: a center crop out of the image resized to this much more (Krizhevsky et al. 2012)


@dataclass(frozen=True)
class FileSet:
    """Image files below `root` for images of `size` x `size`, `labels` (N,) int64 with values below `num_classes`.

    `files` (N,) holds paths as bytes in one array: worker processes share it, while a list of a million
    strings would be copied into each, reference count by reference count.
    """

    root: str
    files: np.ndarray
    size: int
    labels: Tensor
    num_classes: int
    sources: None = None  # each file is a picture of its own

    @classmethod
    def of(cls, files: Sequence[tuple[Path, int]], root: str, size: int, num_classes: int) -> FileSet:
        names = np.array([os.fsencode(path.relative_to(root)) for path, _ in files])
        return cls(root, names, size, torch.tensor([label for _, label in files]), num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> FileSet:
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W) as the model sees an image."""
        return (3, self.size, self.size)

    def path(self, index: int) -> Path:
        return Path(self.root) / os.fsdecode(bytes(self.files[index]))

    def pixels(self, chosen: Tensor) -> Tensor:
        """(len(chosen), 3, H, W) uint8 as in evaluation, on the CPU. ValueError for a file that does not decode."""
        seen = transform(self.size, "none")
        return torch.stack([seen(decode(self.path(i))) for i in chosen.tolist()])

    def take(self, chosen: Tensor) -> FileSet:
        return replace(self, files=self.files[chosen.numpy()], labels=self.labels[chosen])

    def first(self, count: int | None, what: str) -> FileSet:
        """The first `count` images of a shuffle that is the same on every machine; all if None."""
        chosen = first_of(len(self), count, what)
        return self if chosen is None else self.take(chosen)

    def digest(self) -> str:
        """What the files are called and their labels, in 16 hexadecimal digits: the pixels are not read."""
        state = hashlib.sha256(b"\n".join(self.files.tolist()))
        state.update(self.labels.numpy().tobytes())
        return state.hexdigest()[:16]


def decode(path: Path) -> Image.Image:
    """The picture as RGB. ValueError, naming the file, if it does not decode or is deeper than 8 bits."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # conversion to RGB would clip, not scale
                raise ValueError(f"its pixels are deeper than 8 bits, mode {image.mode}")
            return image.convert("RGB")
    # Pillow's decoders raise more than OSError for a broken file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} does not decode ({error}): replace or remove it") from None


def transform(size: int, augment: str) -> v2.Transform:
    """A PIL image to (3, size, size) uint8: `resized_crop_flip` as in Szegedy et al. 2015, `none` a center crop."""
    if augment == "resized_crop_flip":
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        assert augment == "none", augment
        steps = [v2.Resize(round(size * LARGER)), v2.CenterCrop(size)]
    return v2.Compose([*steps, v2.PILToTensor()])
