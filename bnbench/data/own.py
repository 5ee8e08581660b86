"""A user's own data: whatever a function of theirs returns, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnbench import dotted

from .images import DataSplits, ImageSet


def load_own(name: str, image_size: int | None, options: dict[str, Any]) -> DataSplits:
    """Calls what `name` (a dotted path) names with `options`, and `image_size` where there is one.

    It returns DataSplits or a pair of ImageSets: train and test. Raises ValueError with one line for
    anything else: images that are no (N, 3, H, W) uint8, labels that are no classes, splits that differ.
    """
    given = options if image_size is None else {"image_size": image_size, **options}
    made = dotted.call("data.name", name, **given)
    splits = [made.train, made.test] if isinstance(made, DataSplits) else made
    if not isinstance(splits, list | tuple) or len(splits) != 2:
        raise ValueError(
            f"data.name={name} returned {type(made).__name__}: return (train, test), two ImageSets"
        )
    for split, images in zip(("train", "test"), splits, strict=True):
        problem = _problem(images)
        if problem:
            raise ValueError(f"data.name={name}: its {split} set {problem}")
    train, test = splits
    if (train.images.shape[1:], train.num_classes) != (test.images.shape[1:], test.num_classes):
        raise ValueError(
            f"data.name={name}: train and test differ in the size of images or number of classes"
        )
    if image_size is not None and train.images.shape[-1] != image_size:
        raise ValueError(
            f"data.name={name}: its images are {train.images.shape[-1]} pixels wide, not data.image_size={image_size}"
        )
    return DataSplits(train, test)


def _problem(made: Any) -> str | None:
    if not isinstance(made, ImageSet):
        return f"is a {type(made).__name__}: make it a bnbench.data.ImageSet(images, labels, num_classes)"
    images, labels = made.images, made.labels
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or images.dim() != 4
        or images.shape[1] != 3
    ):
        shape = (
            f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        )
        return f"has images {shape}: they must be (N, 3, H, W) torch.uint8"
    if images.shape[2] != images.shape[3]:
        return f"has images of {images.shape[2]}x{images.shape[3]}: they must be square"
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        return f"has labels that are not ({len(images)},) torch.int64, one for each image"
    if not len(labels) or labels.min() < 0 or labels.max() >= made.num_classes:
        return f"is empty or has labels outside 0 to {made.num_classes - 1}"
    if made.sources is not None and made.sources.shape != labels.shape:
        return f"has sources that are not ({len(images)},), the number of each image's picture"
    return None
