"""Random images: for measuring throughput at any image size, and for nothing else."""

from __future__ import annotations

import torch

from .images import MAX_BYTES, DataSplits, ImageSet

SEED = 0  # the data's own: a run's seed does not touch it


def make_synthetic(size: int, num_classes: int, train_images: int, test_images: int) -> DataSplits:
    """Uniform random pixels of `size` x `size` and labels, the same on every machine and device.

    Raises ValueError for sets too large for memory.
    """
    total = (train_images + test_images) * 3 * size * size
    if total > MAX_BYTES:
        raise ValueError(
            f"{train_images + test_images} images of {size}x{size} take {total / 2**30:.0f} GiB, above the "
            f"{MAX_BYTES / 2**30:.0f} GiB of an in-memory set: lower data.image_size, data.train_images or "
            "data.test_images"
        )
    draws = torch.Generator().manual_seed(SEED)

    def some(count: int) -> ImageSet:
        images = torch.randint(256, (count, 3, size, size), generator=draws, dtype=torch.uint8)
        return ImageSet(images, torch.randint(num_classes, (count,), generator=draws), num_classes)

    return DataSplits(some(train_images), some(test_images))
