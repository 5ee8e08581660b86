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

from .fields import STRICT, Int, Named, positive

STREAMED = ("streamed_folder", "imagenet")
FOLDERS = ("image_folder", *STREAMED)
# What a choice must be given, and what it may be; of these keys it reads no other.
NEEDS: dict[str, tuple[str, ...]] = {
    "image_folder": ("root", "image_size"),
    **dict.fromkeys(("cifar10", "cifar100", "fashion_mnist"), ("root",)),
    **dict.fromkeys(STREAMED, ("root", "image_size", "workers")),
    "synthetic": ("image_size", "num_classes", "train_images", "test_images"),
}
MAY: dict[str, tuple[str, ...]] = dict.fromkeys(FOLDERS, ("num_classes",))
# torchvision's IMG_EXTENSIONS: what else lies in a class folder is no image.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MOST_TITLE = 80
OWN_MAY = ("image_size", "num_classes", "options")


@dataclass(frozen=True)
class DataConfig(Named):
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
    val_images: Int | None = None  # training images held out and validated on; None: the test set
    val_seed: Int = 0
    workers: Int | None = None
    num_classes: Int | None = None
    train_images: Int | None = None
    test_images: Int | None = None
    options: dict[str, Any] | None = None  # of a user's own data
    title: str | None = None  # what reports call the data; None: its name

    def __post_init__(self) -> None:
        if dotted.is_dotted(self.name):
            dotted.check_findable("data.name", self.name)
        else:
            catalog.check_known("data", self.name, catalog.DATASETS)
        known = catalog.STREAMED_AUGMENTATIONS if self.streamed else catalog.AUGMENTATIONS
        catalog.check_known("data.augment", self.augment, known)
        for key in ("image_size", "max_train", "max_test", "num_classes", "train_images", "test_images"):
            positive(f"data.{key}", getattr(self, key))
        positive("data.val_images", self.val_images)
        positive("data.workers", self.workers, inclusive=True)
        if not 0 <= self.val_seed < 2**32:
            raise ValueError(f"data.val_seed={self.val_seed} must be at least 0 and below 2**32")
        if self.val_seed and self.val_images is None:
            raise ValueError(
                f"data.val_seed={self.val_seed} would be ignored without data.val_images: give both, or leave it out"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(
                f"data.mean={list(self.mean)}, data.std={list(self.std)}: three finite numbers each, "
                "the deviations positive"
            )
        self._check_title()
        self._check_keys()
        if self.name in FOLDERS:
            self._check_folders()

    def _check_keys(self) -> None:
        needs = NEEDS.get(self.name, ())
        may = OWN_MAY if dotted.is_dotted(self.name) else (*needs, *MAY.get(self.name, ()))
        for key in sorted({key for keys in (*NEEDS.values(), OWN_MAY) for key in keys}):
            value = getattr(self, key)
            if key in needs and value is None:
                raise ValueError(
                    f"data.{key} has no value, and data={self.name} needs one: give data.{key}=..."
                )
            if key not in may and value is not None:
                raise ValueError(f"data.{key}={value} would be ignored by data={self.name}: leave it out")

    def _check_title(self) -> None:
        if self.title is None:
            return
        if self.label is not None:
            raise ValueError(
                f"data.title={self.title} would be ignored: reports call data={self.name} "
                f"'{self.label}'; leave it out"
            )
        if not self.title.strip() or len(self.title) > MOST_TITLE or not self.title.isprintable():
            raise ValueError(
                f"data.title={self.title!r} must be one line of 1 to {MOST_TITLE} characters that are not all spaces"
            )

    def _check_folders(self) -> None:
        assert self.root is not None
        for split in ("train", self.test_folder):
            if not (Path(self.root) / split).is_dir():
                if split == "test" and (Path(self.root) / "val").is_dir():
                    raise ValueError(
                        f"data.root={self.root} has val/ and no test/ folder, and data={self.name} reads test/: "
                        "rename val/, or set data=streamed_folder, which reads either"
                    )
                raise ValueError(
                    f"data.root={self.root} has no {split}/ folder: {self.name} needs train/ and "
                    f"{self.test_folder}/, each with one folder of images per class"
                )
        classes = sum(entry.is_dir() for entry in os.scandir(Path(self.root) / "train"))
        if classes and self.num_classes not in (None, classes):
            raise ValueError(
                f"data.num_classes={self.num_classes}, but data={self.name} at data.root={self.root} has {classes} "
                "classes: correct it, or leave it null"
            )

    @property
    def streamed(self) -> bool:
        """Whether images are read from disk for each batch, rather than held decoded."""
        return self.name in STREAMED

    @property
    def test_folder(self) -> str:
        """Of a tree of images: ImageNet's test/ has no labels, and many trees have their labelled images in val/."""
        assert self.root is not None
        has_val = (Path(self.root) / "val").is_dir() and not (Path(self.root) / "test").is_dir()
        return "val" if self.name == "imagenet" or (self.streamed and has_val) else "test"

    @property
    def side(self) -> int | None:
        """Height and width of the images as the model sees them; None if only a user's own data knows."""
        known = {"digits": 16, "cifar10": 32, "cifar100": 32, "fashion_mnist": 28}
        return known.get(self.name, self.image_size)

    @property
    def label(self) -> str | None:
        """What every output says beside numbers on this data."""
        return catalog.DATA_LABELS.get(self.name)

    def identity(self) -> dict[str, Any]:
        """What defines the data: never its path or title. A folder is known by the names of the files in it."""
        known = dataclasses.asdict(self)
        # How many processes make a batch does not change it.
        del known["root"], known["download"], known["workers"], known["title"]
        if self.val_images is None:
            del known["val_images"], known["val_seed"]
        if self.name != "synthetic":
            known["num_classes"] = None  # elsewhere a check, and the data have them
        # Keys of other data, so that a new one changes no identity that is written already.
        for key in ("num_classes", "train_images", "test_images", "options"):
            if known[key] is None:
                del known[key]
        if dotted.is_dotted(self.name):
            known["source"] = self.source
        if self.label is not None:
            known["label"] = self.label
        if self.name in FOLDERS:
            known["files"] = self._files
        return known

    @functools.cached_property  # goes to the ranks, as `source` does
    def _files(self) -> str:
        assert self.root is not None
        return _listing_digest(self.root, self.test_folder)


@functools.cache  # one listing serves every run of a sweep
def _listing_digest(root: str, test_folder: str) -> str:
    names = sorted(
        os.path.relpath(f"{folder}/{file}", root)
        for split in ("train", test_folder)
        for folder, _, files in os.walk(f"{root}/{split}")
        for file in files
        if file.lower().endswith(IMAGES)
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
