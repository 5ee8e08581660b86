"""scikit-learn's real digit images, made hard enough to tell norms apart.

The clean 8x8 digits are too easy (every norm errs on 1.4-2.6%). Each image is split off first, then
copied onto a 16x16 canvas with rotation, scale, shift, contrast, brightness and noise. The result is
the same on every machine of one torch version; the record holds its digest.
"""

from __future__ import annotations

import torch
from sklearn import datasets  # at the top: the ranks' server imports it once for all of them
from torch import Tensor
from torch.nn import functional as F

from .images import DataSplits, ImageSet

SIZE = 16
TRAIN_IMAGES = 1297  # of 1,797; the other 500 are the test set
TRAIN_COPIES, TEST_COPIES = 8, 4
SPLIT_SEED, TRAIN_SEED, TEST_SEED = 0, 1, 2  # the data's own: a run's seed does not touch it


def load_digits() -> DataSplits:
    """10,376 training and 2,000 test images of 16x16, one channel repeated to three."""
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    return DataSplits(
        _augmented(images[train], labels[train], TRAIN_COPIES, TRAIN_SEED),
        _augmented(images[test], labels[test], TEST_COPIES, TEST_SEED),
    )


def _augmented(images: Tensor, labels: Tensor, copies: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images, labels = images.repeat(copies, 1, 1), labels.repeat(copies)
    n = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.5, 0.5), uniform(0.8, 1.4)
    shift_x, shift_y = uniform(-0.35, 0.35), uniform(-0.35, 0.35)
    contrast, brightness = uniform(0.3, 1.0), uniform(-0.3, 0.3)
    noise = torch.randn(n, SIZE, SIZE, generator=generator)

    # affine_grid maps the canvas into the digit: a scale above 1 draws the digit smaller. What lies
    # outside the digit is 0, its paper.
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    canvas = F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    contrast, brightness = contrast.view(n, 1, 1), brightness.view(n, 1, 1)
    values = contrast * canvas + brightness + 0.25 * contrast * noise
    pixels = (60 * values + 110).clamp(0, 255).round().to(torch.uint8)
    digits = torch.arange(n // copies).repeat(copies)
    return ImageSet(pixels[:, None].repeat(1, 3, 1, 1), labels, num_classes=10, sources=digits)
