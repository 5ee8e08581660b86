"""Batched augmentation where the images lie: one gather for a whole batch, and one for those that are flipped."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bnbench.catalog import AUGMENTATIONS

PADDING = 4


class Augment:
    """Random crops from zero-padded images, horizontal flips, or both (He et al. 2016), as `kind` says.

    Holds the padded set as the windows that begin at any of its pixels, a strided view: a crop is one number, and a
    batch of them one indexing operation. What is drawn is on the CPU, so that a GPU is told and never asked.
    """

    def __init__(self, images: Tensor, kind: str) -> None:
        assert kind in AUGMENTATIONS, kind
        self.images, self.crops, self.flips = images.contiguous(), "crop" in kind, "flip" in kind
        if self.crops:
            padded = F.pad(images, [PADDING] * 4).contiguous()
            self.strides = padded.stride()
            window = images.shape[1:]
            reach = sum((size - 1) * stride for size, stride in zip(window, self.strides[1:], strict=True))
            self.windows = padded.as_strided((padded.numel() - reach, *window), (1, *self.strides[1:]))

    def __call__(self, indices: Tensor, place: slice, draws: torch.Generator) -> Tensor:
        """uint8 images (len(indices[place]), C, H, W).

        `indices` are those of the whole global step: the draws are made for all of it and this rank's
        share taken, so that an image is augmented alike on every world.
        """
        count = len(indices)
        device = self.images.device
        mine = indices[place]
        if self.crops:
            down, right = torch.randint(2 * PADDING + 1, (2, count), generator=draws)[:, place]
            image, _, row, pixel = self.strides
            batch = self.windows[(mine * image + down * row + right * pixel).to(device)]
        else:
            batch = self.images[mine.to(device)]
        if self.flips:
            flipped = (torch.rand(count, generator=draws)[place] < 0.5).nonzero().flatten().to(device)
            mirrored = batch.index_select(0, flipped).flip(-1)
            _words(batch).index_copy_(0, flipped, _words(mirrored))
        return batch


def _words(images: Tensor) -> Tensor:
    """A view of the bytes of uint8 images, a row each: eight in one where they are so many, since indexed copies on CPU
    go element by element."""
    rows = images.view(len(images), images.shape[1:].numel())
    return rows if rows.shape[1] % 8 else rows.view(torch.int64)
