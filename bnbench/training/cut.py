"""Sets cut short, for a probe: the real ones are loaded, and so the setup takes what it takes."""

from __future__ import annotations

import torch

from bnbench import data
from bnbench.config import DataConfig
from bnbench.training.setup import Sets


class CutCache:
    """The sets of `cache`, with `train` images to train on and `validation` ones to evaluate on at most."""

    def __init__(self, cache: Sets, train: int, validation: int) -> None:
        self.cache, self.train, self.validation = cache, train, validation
        self.whole: dict[str, int] = {}  # images of the sets as they are

    def get(self, config: DataConfig, device: torch.device) -> data.DataSplits:
        splits = self.cache.get(config, device)
        self.whole = {
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": len(splits.test),
        }
        held = splits.holdout
        return data.DataSplits(
            _first(splits.train, self.train),
            _first(splits.test, self.validation),
            None if held is None else _first(held, self.validation),
        )


def _first(images: data.ImageSet | data.FileSet, count: int) -> data.ImageSet | data.FileSet:
    return images.first(min(count, len(images)), "max_train")
