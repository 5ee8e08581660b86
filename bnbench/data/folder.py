"""Trees of image files, decoded once into memory or left on disk to be streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .files import FileSet, decode
from .images import MAX_BYTES, DataSplits, ImageSet, first_of

MOST_NAMES = 10  # of folders in one line


def load_image_folder(root: str, size: int, max_train: int | None, max_test: int | None) -> DataSplits:
    """root/train and root/test, a folder of images per class in each, as RGB of size x size.

    Only the images that are used are decoded. Raises ValueError for a missing or empty folder, class
    sets that differ, a file that does not decode (named), and a set too large for memory.
    """
    train, test, classes = _listed(root, "test")
    return DataSplits(
        _decode(_chosen(train, max_train, "max_train"), size, classes),
        _decode(_chosen(test, max_test, "max_test"), size, classes),
    )


def list_image_folder(
    root: str, test_folder: str, size: int, max_train: int | None, max_test: int | None
) -> DataSplits:
    """The same tree with its images left on disk. No file is opened: one that does not decode ends the run."""
    train, test, classes = _listed(root, test_folder)
    return DataSplits(
        FileSet.of(train, root, size, classes).first(max_train, "max_train"),
        FileSet.of(test, root, size, classes).first(max_test, "max_test"),
    )


Files = list[tuple[Path, int]]


def _listed(root: str, test_folder: str) -> tuple[Files, Files, int]:
    """The files of both splits with their labels, and the number of classes."""
    train, classes = _files(Path(root) / "train")
    test, test_classes = _files(Path(root) / test_folder)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        shown = ", ".join(odd[:MOST_NAMES]) + (f" and {len(odd) - MOST_NAMES} more" * (len(odd) > MOST_NAMES))
        raise ValueError(
            f"data.root={root}: train/ and {test_folder}/ differ in their class folders: {shown}"
        )
    return train, test, len(classes)


def _files(folder: Path) -> tuple[Files, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from None
    return [(Path(path), label) for path, label in found.samples], found.classes


def _chosen(files: Files, limit: int | None, what: str) -> Files:
    """The same choice as ImageSet.first makes, before decoding instead of after."""
    chosen = first_of(len(files), limit, what)
    return files if chosen is None else [files[i] for i in chosen.tolist()]


def _decode(files: Files, size: int, num_classes: int) -> ImageSet:
    total = len(files) * 3 * size * size
    if total > MAX_BYTES:
        raise ValueError(
            f"{len(files)} images of {size}x{size} take {total / 2**30:.0f} GiB decoded, above the "
            f"{MAX_BYTES / 2**30:.0f} GiB of an in-memory set: stream them with data=streamed_folder, or lower "
            "data.image_size, data.max_train or max_test"
        )
    pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for place, (path, _) in enumerate(files):
        rgb = decode(path)
        if rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        pixels[place] = np.asarray(rgb)
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, num_classes)
