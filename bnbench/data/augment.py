"""Batched augmentation where the images lie: one gather for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnbench.catalog import AUGMENTATIONS

PADDING = 4


class Augment:
    """Random crops from zero-padded images, horizontal flips, or both (He et al. 2016), as `kind` says.

    Holds every window of the padded set as a strided view; a batch is one indexing operation.
    """

    def __init__(self, images: Tensor, kind: str) -> None:
        assert kind in AUGMENTATIONS, kind
        self.images, self.crops, self.flips = images, "crop" in kind, "flip" in kind
        if self.crops:
            height, width = images.shape[-2:]
            padded = F.pad(images, [PADDING] * 4)
            self.windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 9, 9, H, W)

    def __call__(self, indices: Tensor, place: slice, draws: torch.Generator) -> Tensor:
        """uint8 images (len(indices[place]), C, H, W).

        `indices` are those of the whole global step: the draws are made for all of it and this rank's
        share taken, so that an image is augmented alike on every world.
        """
        count = len(indices)
        device = self.images.device
        mine = indices[place].to(device)
        if self.crops:
            shifts = torch.randint(2 * PADDING + 1, (2, count), generator=draws)[:, place].to(device)
            batch = self.windows[mine, :, shifts[0], shifts[1]]
        else:
            batch = self.images[mine]
        if self.flips:
            flip = (torch.rand(count, generator=draws)[place] < 0.5).to(device)
            batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
        return batch
