"""Which images a rank takes at which step: one order for every world size.

Image i of a global step depends on (seed, step) alone, and its augmentation on (seed, step, i), so that
runs on different worlds see the same images, augmented alike, in the same statistics groups.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

ORDER, AUGMENTATION, REFERENCE, DROPOUT = 0, 1, 2, 3  # streams of random numbers that one seed feeds


def generator(seed: int, stream: int, count: int) -> torch.Generator:
    """A CPU generator for the `count`-th draw of a stream, whatever was drawn before."""
    return torch.Generator().manual_seed(mix(seed, stream, count))


def mix(seed: int, stream: int, count: int) -> int:
    """The generator's seed, below 2**63."""
    # SplitMix64's finalizer: neighbouring (seed, stream, count) start far apart.
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + (count + 1) * 0x8CB92BA72F3D8DD7) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & (2**63 - 1)


def dropout_seed(seed: int, rank: int) -> int:
    """Of the random numbers that a rank's network draws in training: other ranks' images are dropped otherwise."""
    return mix(seed, DROPOUT, rank)


def reference_images(num_images: int, count: int, seed: int) -> Tensor:
    """(count,) image indices of Virtual BN's reference batch: the first of a permutation by the run's seed.

    Raises ValueError if there are not as many.
    """
    if count > num_images:
        raise ValueError(
            f"norm.reference_size={count} is more than the {num_images} training images: lower it, or raise "
            "data.max_train"
        )
    return torch.randperm(num_images, generator=generator(seed, REFERENCE, 0))[:count]


def epoch_steps(num_images: int, global_batch: int, seed: int, epoch: int) -> Tensor:
    """(steps, global_batch) image indices of an epoch; the last partial batch is dropped."""
    steps = num_images // global_batch
    order = torch.randperm(num_images, generator=generator(seed, ORDER, epoch))
    return order[: steps * global_batch].view(steps, global_batch)


def order_digest(num_images: int, global_batch: int, seed: int) -> str:
    """What tells the order of images of two runs apart, in 16 hexadecimal digits: that of the first epoch."""
    steps = epoch_steps(num_images, global_batch, seed, 0)
    return hashlib.sha256(steps.numpy().tobytes()).hexdigest()[:16]
