"""Published sets through torchvision's own loaders, which download and check them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnbench.folders import missing, remove_empty
from bnbench.lock import Lock

from .images import DataSplits, ImageSet


@dataclass(frozen=True)
class Published:
    """One of torchvision's classes: where its files lie below `root`, and what half a download leaves there."""

    dataset: str
    num_classes: int
    folder: str
    left: str


PUBLISHED = {
    "cifar10": Published("CIFAR10", 10, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": Published("CIFAR100", 100, "cifar-100-python", "cifar-100-python.tar.gz"),
    "fashion_mnist": Published("FashionMNIST", 10, "FashionMNIST/raw", "FashionMNIST/raw/*"),
}
LOOK_SECONDS = 0.5  # between looks at another process's download
# The last three of a file that an interruption cut off: Fashion-MNIST's, unpacked, have no sums to be checked by.
UNREADABLE = (OSError, RuntimeError, AssertionError, IndexError, ValueError)


def load_published(
    name: str, root: str, download: bool, max_train: int | None, max_test: int | None
) -> DataSplits:
    """One of PUBLISHED, decoded. Raises ValueError if it is neither at `root` nor to be had."""
    from torchvision import datasets

    info = PUBLISHED[name]
    dataset = getattr(datasets, info.dataset)

    def split(train: bool) -> ImageSet:
        data = dataset(root, train=train)
        return ImageSet(_pixels(data.data), torch.as_tensor(data.targets), info.num_classes)

    try:
        try:
            train, test = split(True), split(False)
        except UNREADABLE:  # not there, or another process is about to put it there
            if not download:
                raise
            _download(dataset, Path(root), info)
            train, test = split(True), split(False)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        tried = (
            f"could not be downloaded or read ({reason})" if download else f"data.download=false ({reason})"
        )
        raise ValueError(
            f"data={name} is not at data.root={root} and {tried}: put a whole {info.folder} there, or use "
            "data=image_folder or data=digits"
        ) from None
    return DataSplits(train.first(max_train, "max_train"), test.first(max_test, "max_test"))


def _download(dataset: Any, root: Path, info: Published) -> None:
    """After what another process downloads there: torchvision would write into its half-written files."""
    made = missing(root)
    root.mkdir(parents=True, exist_ok=True)
    lock = Lock(root)
    try:
        while not lock.take():
            time.sleep(LOOK_SECONDS)
        dataset(str(root), train=True, download=True)
    except UNREADABLE:
        if made:
            _remove_half(root, info)
        raise
    finally:
        lock.release()
        remove_empty(made)


def _pixels(data: Any) -> Tensor:
    """(N, 3, H, W) uint8 of what torchvision's classes hold: (N, H, W, 3) arrays or (N, H, W) tensors of gray."""
    images = torch.as_tensor(data)
    if images.dim() == 3:
        return images[:, None].repeat(1, 3, 1, 1)
    return images.permute(0, 3, 1, 2).contiguous()


def _remove_half(root: Path, info: Published) -> None:
    for path in root.glob(info.left):
        path.unlink()
    parts = Path(info.left).parent.parts
    remove_empty(root.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1))
