"""Training images held out for tuning, so that the test set stays apart."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import DataSplits


def hold_out(splits: DataSplits, count: int, seed: int) -> DataSplits:
    """`count` training images as the holdout: each class's share of them is its share of the training set.

    The choice depends on the labels and `seed` alone, not on a run's seed. Images made from one picture stay on
    one side; where `count` ends among them, the rest of the last picture's are on neither.
    Raises ValueError unless images are left to train on.
    """
    train = splits.train
    if count >= len(train):
        raise ValueError(
            f"data.val_images={count} is not below the {len(train)} training images it is held out of: lower it, or "
            "raise data.max_train"
        )
    kept, held = _parted(train.labels.cpu(), train.sources, count, seed)
    if not len(kept):
        raise ValueError(f"data.val_images={count} leaves no picture to train on: lower it")
    return DataSplits(train.take(kept), splits.test, train.take(held))


def _parted(labels: Tensor, sources: Tensor | None, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images kept and of the `count` held out, each in the order of the set."""
    draws = torch.Generator().manual_seed(seed)
    if sources is None:
        order = _stratified(labels, draws)
        return order[count:].sort().values, order[:count].sort().values
    _, picture = sources.unique(return_inverse=True)
    pictures = int(picture.max()) + 1
    classes = torch.zeros(pictures, dtype=labels.dtype).scatter(0, picture, labels)
    place = torch.empty(pictures, dtype=torch.long)
    place[_stratified(classes, draws)] = torch.arange(pictures)
    by_picture = place[picture].argsort(stable=True)
    last = place[picture[by_picture[count - 1]]]
    kept = (place[picture] > last).nonzero().flatten()
    return kept, by_picture[:count].sort().values


def _stratified(labels: Tensor, draws: torch.Generator) -> Tensor:
    """A permutation of which every beginning has the classes in their shares, to less than an image or two."""
    shuffled = torch.randperm(len(labels), generator=draws)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = torch.bincount(labels)
    first = sizes.cumsum(0) - sizes
    of = labels[by_class]
    share = (torch.arange(len(labels)) - first[of] + 0.5).double() / sizes[of]
    return by_class[share.argsort(stable=True)]
