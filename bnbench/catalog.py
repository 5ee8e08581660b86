"""Names, one-liners and families of what bnbench knows. No torch: both halves and `--help` read it.

`norms.NORMS` and `models.MODELS` build what is listed here; a test holds the lists equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bnbench.suggest import unknown


@dataclass(frozen=True)
class NormInfo:
    """One normalization: `uses` names the keys of the Hydra group `norm` that it reads."""

    family: str  # "batch" (shares statistics over images) or "channel" (each image by itself)
    summary: str
    uses: tuple[str, ...]
    alias_of: str | None = None  # the kind it becomes in a run's identity


NORMS: dict[str, NormInfo] = {
    "bn": NormInfo(
        "batch",
        "batch normalization; norm.batch_size images (NBS) share statistics",
        ("batch_size", "statistics", "momentum", "eps"),
    ),
    "syncbn": NormInfo(
        "batch",
        "bn with statistics over the whole global batch (NBS = global batch)",
        ("statistics", "momentum", "eps"),
        alias_of="bn",
    ),
    "gn": NormInfo(
        "channel",
        "group normalization; norm.num_groups channel groups of each image",
        ("num_groups", "eps"),
    ),
}

CIFAR_RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
MODELS: dict[str, str] = {
    f"resnet{depth}": f"CIFAR ResNet, {depth} layers: {(depth - 2) // 6} block(s) a stage, widths 16/32/64"
    for depth in CIFAR_RESNET_DEPTHS
}

DATASETS: dict[str, str] = {
    "digits": "scikit-learn's 1,797 real digit images, augmented to 16x16; offline",
    "image_folder": "train/ and test/ trees of class folders of images (data.root=...)",
    "cifar10": "CIFAR-10 by torchvision's downloader (needs a network once)",
}

GROUPS: dict[str, str] = {
    "model": "the network",
    "norm": "the normalization layer, and over how many images it shares statistics",
    "data": "the images, held decoded on the training device",
    "optim": "the recipe: optimizer, learning rate, warmup and schedule",
    "trainer": "the world: device kind, ranks, nodes, precision, threads",
    "logger": "where curves go besides the record",
    "experiment": "a whole study in one file: sweeps and settings together",
}

KEYS: dict[str, str] = {
    "name": "the sweep: its folder runs/<name> and its W&B group",
    "dir": "where run folders go",
    "seed": "initial weights, data order and augmentation",
    "epochs": "passes over the training images",
    "global_batch": "images per step over all ranks; per-device batch = global_batch / ranks",
    "norm.batch_size": "NBS: images that share statistics; null = the per-device batch",
    "trainer.devices": "ranks on each node (CPU ranks use gloo, GPU ranks NCCL)",
}

STATISTICS_POLICIES = ("mean", "rank0")
LR_RULES = ("none", "linear", "sqrt")
PRECISIONS = ("fp32", "bf16", "fp64")
AUGMENTATIONS = ("none", "crop", "crop_flip")
ACCELERATORS = ("auto", "cpu", "gpu")


def check_known(key: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError that lists the known values if `value` is not one of them."""
    known = tuple(known)
    if value not in known:
        raise ValueError(unknown(key, value, known))
