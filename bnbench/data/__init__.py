"""The images a run trains and is validated on."""

from __future__ import annotations

from bnbench.config import DataConfig

from .digits import load_digits
from .folder import load_cifar10, load_image_folder
from .images import DataSplits, ImageSet
from .loader import Normalizer, TestLoader, TrainLoader
from .order import reference_images
from .own import load_own
from .synthetic import make_synthetic

__all__ = ["DataSplits", "ImageSet", "Normalizer", "TestLoader", "TrainLoader", "load", "reference_images"]


def load(config: DataConfig) -> DataSplits:
    """The decoded train and test sets, on the CPU. ValueError if they are not to be had."""
    if config.name == "image_folder":
        assert config.root is not None and config.image_size is not None
        return load_image_folder(config.root, config.image_size, config.max_train, config.max_test)
    if config.name == "cifar10":
        assert config.root is not None
        return load_cifar10(config.root, config.download, config.max_train, config.max_test)
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
