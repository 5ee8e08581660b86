"""The images a run trains and is validated on."""

from __future__ import annotations

from typing import Any

from bnbench.config import DataConfig
from bnbench.span import Span

from .digits import load_digits
from .files import FileSet
from .folder import list_image_folder, load_image_folder
from .holdout import hold_out
from .images import DataSplits, ImageSet
from .loader import Normalizer, TestLoader, TrainLoader
from .order import dropout_seed, order_digest, reference_images
from .own import load_own
from .published import PUBLISHED, load_published
from .streaming import StreamedTestLoader, StreamedTrainLoader
from .synthetic import make_synthetic
from .waiting import WatchedLoader

__all__ = [
    "STREAMED_TEST_BATCH",
    "DataSplits",
    "FileSet",
    "ImageSet",
    "Normalizer",
    "StreamedTestLoader",
    "StreamedTrainLoader",
    "TestLoader",
    "TrainLoader",
    "WatchedLoader",
    "describe",
    "dropout_seed",
    "load",
    "make_loaders",
    "order_digest",
    "reference_images",
]

STREAMED_TEST_BATCH = 64  # images of 224 px and more: activations of 500 of them would not fit everywhere


def load(config: DataConfig) -> DataSplits:
    """The train and test sets, on the CPU or listed on disk. ValueError if they are not to be had as asked."""
    splits = _load(config)
    classes = splits.train.num_classes
    if config.num_classes not in (None, classes):  # a user's own data; of folders, the configuration knows
        raise ValueError(
            f"data.num_classes={config.num_classes}, but data={config.name} has {classes} classes: correct it, or "
            "leave it null"
        )
    if config.val_images is not None:
        splits = hold_out(splits, config.val_images, config.val_seed)
    return splits


def _load(config: DataConfig) -> DataSplits:
    first = {"max_train": config.max_train, "max_test": config.max_test}
    if config.streamed:
        assert config.root is not None and config.image_size is not None
        return list_image_folder(config.root, config.test_folder, config.image_size, **first)
    if config.name == "image_folder":
        assert config.root is not None and config.image_size is not None
        return load_image_folder(config.root, config.image_size, **first)
    if config.name in PUBLISHED:
        assert config.root is not None
        return load_published(config.name, config.root, config.download, **first)
    if config.name == "digits":
        splits = load_digits()
    elif config.name == "synthetic":
        assert config.image_size and config.num_classes and config.train_images and config.test_images
        splits = make_synthetic(
            config.image_size, config.num_classes, config.train_images, config.test_images
        )
    else:
        splits = load_own(config.name, config.image_size, config.options or {})
    return DataSplits(
        splits.train.first(config.max_train, "max_train"), splits.test.first(config.max_test, "max_test")
    )


def make_loaders(
    config: DataConfig,
    splits: DataSplits,
    normalize: Normalizer,
    *,
    global_batch: int,
    seed: int,
    span: Span,
    accumulate: int,
    rank: int,
    world_size: int,
    test_batch: int,
) -> tuple[TrainLoader | StreamedTrainLoader, TestLoader | StreamedTestLoader]:
    """This rank's loaders of the training set and of what the run is validated on.

    Raises ValueError for a set that is smaller than a step, or than the world.
    """
    train, validation = splits.train, splits.validation
    if splits.holdout is not None:
        if len(train) < global_batch:
            raise ValueError(
                f"data.val_images={len(validation)} leaves {len(train)} images to train on, fewer than "
                f"global_batch={global_batch}: lower either"
            )
        if len(validation) < world_size:
            raise ValueError(
                f"data.val_images={len(validation)} does not reach for {world_size} ranks: raise it, or use "
                "fewer ranks"
            )
    place: dict[str, Any] = {"rank": rank, "world_size": world_size}
    step = {"global_batch": global_batch, "seed": seed, "span": span, "accumulate": accumulate, **place}
    if isinstance(train, FileSet):
        assert isinstance(validation, FileSet) and config.workers is not None
        workers, batch = config.workers, min(test_batch, STREAMED_TEST_BATCH)
        return (
            StreamedTrainLoader(train, normalize, config.augment, workers=workers, **step),
            StreamedTestLoader(validation, normalize, workers=workers, batch=batch, **place),
        )
    assert isinstance(validation, ImageSet)
    return (
        TrainLoader(train, normalize, config.augment, **step),
        TestLoader(validation, normalize, batch=test_batch, **place),
    )


def describe(config: DataConfig, splits: DataSplits) -> dict[str, Any]:
    """What a record says of the data: sizes, digests, and which images the run was validated on.

    The digests are of pixels and labels (`train_sha256`); of streamed sets, of the files' names and labels
    (`train_files_sha256`).
    """
    digest = "files_sha256" if config.streamed else "sha256"
    sets = {"train": splits.train, "test": splits.test}
    if splits.holdout is not None:
        sets["holdout"] = splits.holdout
    found: dict[str, Any] = {f"{name}_images": len(images) for name, images in sets.items()}
    found |= {"classes": splits.train.num_classes}
    found |= {f"{name}_{digest}": images.digest() for name, images in sets.items()}
    found["validated_on"] = "test" if splits.holdout is None else "holdout"
    if splits.holdout is not None:
        found["holdout_seed"] = config.val_seed
    if config.label is not None:
        found["label"] = config.label
    return found
