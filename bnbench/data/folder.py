"""Image files on disk, decoded once into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bnbench.folders import missing, remove_empty

from .images import MAX_BYTES, DataSplits, ImageSet

CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"


def load_image_folder(root: str, size: int, max_train: int | None, max_test: int | None) -> DataSplits:
    """root/train and root/test, a folder of images per class in each, as RGB of size x size.

    Only the images that are used are decoded. Raises ValueError for a missing or empty folder, class
    sets that differ, a file that does not decode (named), and a set too large for memory.
    """
    train, classes = _files(Path(root) / "train")
    test, test_classes = _files(Path(root) / "test")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(
            f"data.root={root}: train/ and test/ differ in their class folders: {', '.join(odd)}"
        )
    return DataSplits(
        _decode(_chosen(train, max_train, "max_train"), size, len(classes)),
        _decode(_chosen(test, max_test, "max_test"), size, len(classes)),
    )


def load_cifar10(root: str, download: bool, max_train: int | None, max_test: int | None) -> DataSplits:
    """CIFAR-10 through torchvision. Raises ValueError if it is neither at `root` nor to be had."""
    from torchvision.datasets import CIFAR10

    def split(train: bool, limit: int | None, what: str) -> ImageSet:
        data = CIFAR10(root, train=train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), num_classes=10).first(limit, what)

    made = missing(Path(root))
    try:
        if download:
            CIFAR10(root, train=True, download=True)
        return DataSplits(split(True, max_train, "max_train"), split(False, max_test, "max_test"))
    except (OSError, RuntimeError) as error:
        if made:
            (Path(root) / CIFAR10_ARCHIVE).unlink(missing_ok=True)  # half of it
            remove_empty(made)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        tried = f"could not be downloaded ({reason})" if download else "data.download=false"
        raise ValueError(
            f"data=cifar10 is not at data.root={root} and {tried}: put "
            "cifar-10-batches-py there, or use data=image_folder or data=digits"
        ) from None


def _files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from None
    return [(Path(path), label) for path, label in found.samples], found.classes


def _chosen(files: list[tuple[Path, int]], limit: int | None, what: str) -> list[tuple[Path, int]]:
    labels = torch.tensor([label for _, label in files])
    # The same choice as ImageSet.first makes, before decoding instead of after.
    numbered = ImageSet(torch.arange(len(files)), labels, num_classes=0).first(limit, what)
    return [files[i] for i in numbered.images.tolist()]


def _decode(files: list[tuple[Path, int]], size: int, num_classes: int) -> ImageSet:
    total = len(files) * 3 * size * size
    if total > MAX_BYTES:
        raise ValueError(
            f"{len(files)} images of {size}x{size} take {total / 2**30:.0f} GiB decoded, above the "
            f"{MAX_BYTES / 2**30:.0f} GiB of an in-memory set: lower data.image_size, data.max_train or max_test"
        )
    pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for place, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # conversion to RGB would clip, not scale
                    raise ValueError(f"its pixels are deeper than 8 bits, mode {image.mode}")
                rgb = image.convert("RGB")
                if rgb.size != (size, size):
                    rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
                pixels[place] = np.asarray(rgb)
        # Pillow's decoders raise more than OSError for a broken file.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} does not decode ({error}): replace or remove it") from None
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, num_classes)
