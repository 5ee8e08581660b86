"""The images of a run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench import catalog, dotted

from .fields import STRICT, Int, positive

DATA_KEYS = {
    "image_folder": ("root", "image_size"),
    "cifar10": ("root",),
    "synthetic": ("image_size", "num_classes", "train_images", "test_images"),
}


@dataclass(frozen=True)
class DataConfig:
    __pydantic_config__ = STRICT
    name: str
    augment: str = "none"
    root: str | None = None
    image_size: Int | None = None
    download: bool = False
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    max_train: Int | None = None
    max_test: Int | None = None
    num_classes: Int | None = None
    train_images: Int | None = None
    test_images: Int | None = None
    options: dict[str, Any] | None = None  # of a user's own data

    def __post_init__(self) -> None:
        if dotted.is_dotted(self.name):
            dotted.check_findable("data.name", self.name)
        else:
            catalog.check_known("data", self.name, catalog.DATASETS)
        catalog.check_known("data.augment", self.augment, catalog.AUGMENTATIONS)
        for key in ("image_size", "max_train", "max_test", "num_classes", "train_images", "test_images"):
            positive(f"data.{key}", getattr(self, key))
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(
                f"data.mean={list(self.mean)}, data.std={list(self.std)}: three finite numbers each, "
                "the deviations positive"
            )
        reads = DATA_KEYS.get(self.name, ())
        for key in sorted({key for keys in DATA_KEYS.values() for key in keys} | {"options"}):
            value = getattr(self, key)
            if key in reads and value is None:
                raise ValueError(
                    f"data.{key} has no value, and data={self.name} needs one: give data.{key}=..."
                )
            may = ("image_size", "options") if dotted.is_dotted(self.name) else reads
            if key not in may and value is not None:
                raise ValueError(f"data.{key}={value} would be ignored by data={self.name}: leave it out")
        if self.name == "image_folder":
            assert self.root is not None
            for split in ("train", "test"):
                if not (Path(self.root) / split).is_dir():
                    raise ValueError(
                        f"data.root={self.root} has no {split}/ folder: image_folder needs train/ and test/, "
                        "each with one folder of images per class"
                    )

    @property
    def side(self) -> int | None:
        """Height and width of the images as the model sees them; None if only a user's own data knows."""
        return {"digits": 16, "cifar10": 32}.get(self.name, self.image_size)

    @property
    def label(self) -> str | None:
        """What every output says beside numbers on this data."""
        return catalog.DATA_LABELS.get(self.name)

    def identity(self) -> dict[str, Any]:
        """What defines the data: never its path. A folder is known by the names of the files in it."""
        known = dataclasses.asdict(self)
        del known["root"], known["download"]
        # Keys of other data, so that a new one changes no identity that is written already.
        for key in ("num_classes", "train_images", "test_images", "options"):
            if known[key] is None:
                del known[key]
        if dotted.is_dotted(self.name):
            known["source"] = dotted.source_digest(self.name)
        if self.label is not None:
            known["label"] = self.label
        if self.name == "image_folder":
            assert self.root is not None
            known["files"] = _listing_digest(self.root)
        return known


@functools.cache  # one listing serves every run of a sweep
def _listing_digest(root: str) -> str:
    names = sorted(
        os.path.relpath(f"{folder}/{file}", root)
        for split in ("train", "test")
        for folder, _, files in os.walk(f"{root}/{split}")
        for file in files
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
