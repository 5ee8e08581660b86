"""Names, one-liners and families of what bnbench knows. No torch: both halves and `--help` read it.

`norms.NORMS` and `models.MODELS` build what is listed here; a test holds the lists equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bnbench.suggest import unknown


@dataclass(frozen=True)
class NormInfo:
    """One normalization: `uses` names the keys of the Hydra group `norm` that it reads beside placement."""

    family: str  # "batch" (shares statistics over images) or "channel" (each image by itself)
    summary: str
    uses: tuple[str, ...]
    alias_of: str | None = None  # the kind it becomes in a run's identity
    includes_activation: bool = False  # no ReLU behind it, and so no placement after one
    source: str = ""
    over: str = ""  # what statistics are shared over, where the family does not tell


_BN = ("batch_size", "statistics", "momentum", "eps")
_RENORM = ("r_max", "d_max", "warmup", "r_end", "d_end")
NORMS: dict[str, NormInfo] = {
    "bn": NormInfo(
        "batch",
        "batch normalization; norm.batch_size images (NBS) share statistics",
        _BN,
        source="Ioffe & Szegedy 2015",
    ),
    "syncbn": NormInfo(
        "batch",
        "bn with statistics over the whole global batch (NBS = global batch)",
        ("statistics", "momentum", "eps"),
        alias_of="bn",
        source="Peng et al. 2018",
        over="the global batch",
    ),
    "ghost": NormInfo(
        "batch",
        "bn over a part of each device's batch: norm.batch_size below it",
        _BN,
        alias_of="bn",
        source="Hoffer, Hubara & Soudry 2017",
        over="NBS images, a part of a device's batch",
    ),
    "brn": NormInfo(
        "batch",
        "batch renormalization: bn drawn to its running statistics, by r_max and d_max",
        ("batch_size", "momentum", "eps", *_RENORM),
        source="Ioffe 2017",
    ),
    "vbn": NormInfo(
        "channel",
        "virtual bn: each image with a fixed reference batch of norm.reference_size",
        ("eps", "reference_size"),
        source="Salimans et al. 2016",
        over="a fixed reference batch, the same for all",
    ),
    "frozen": NormInfo(
        "batch",
        "bn whose statistics are frozen after a fraction norm.after of training",
        (*_BN, "after"),
        source="He et al. 2016 (fixed statistics)",
        over="NBS images until frozen, then nothing",
    ),
    "gn": NormInfo(
        "channel",
        "group normalization; norm.num_groups channel groups of each image",
        ("num_groups", "eps"),
        source="Wu & He 2018",
    ),
    "ln": NormInfo(
        "channel",
        "layer normalization over channels and pixels (C, H, W)",
        ("eps",),
        source="Ba, Kiros & Hinton 2016",
    ),
    "ln2d": NormInfo(
        "channel",
        "layer normalization of each pixel over its channels",
        ("eps",),
        source="Liu et al. 2022 (ConvNeXt)",
    ),
    "in": NormInfo(
        "channel",
        "instance normalization: each channel of each image by itself",
        ("eps",),
        source="Ulyanov et al. 2016",
    ),
    "frn": NormInfo(
        "channel",
        "filter response normalization with its threshold (TLU) for a ReLU",
        ("eps", "learn_eps"),
        includes_activation=True,
        source="Singh & Krishnan 2020",
    ),
    "evonorm_s0": NormInfo(
        "channel",
        "EvoNorm-S0: normalization and activation in one, by channel groups",
        ("num_groups", "eps"),
        includes_activation=True,
        source="Liu et al. 2020",
    ),
    "evonorm_b0": NormInfo(
        "batch",
        "EvoNorm-B0: normalization and activation in one, over NBS images",
        _BN,
        includes_activation=True,
        source="Liu et al. 2020",
    ),
    "ws_gn": NormInfo(
        "channel",
        "gn behind convolutions of standardized weight",
        ("num_groups", "eps"),
        source="Qiao et al. 2019",
    ),
    "ws_bn": NormInfo(
        "batch", "bn behind convolutions of standardized weight", _BN, source="Qiao et al. 2019"
    ),
    "none": NormInfo(
        "channel",
        "no normalization: scale and bias, and norm.init for depth",
        ("affine", "init"),
        source="De & Smith 2020; Zhang et al. 2019",
    ),
}


@dataclass(frozen=True)
class ModelInfo:
    """One network: `uses` names the keys of the Hydra group `model` that it reads.

    `min_side` is the smallest height and width of an image that it trains on with BatchNorm2d, in a
    per-device batch of two; `one_image_side`, with one image: below it, some norm sees one value a channel.
    """

    family: str  # what its variants have in common
    summary: str
    uses: tuple[str, ...]
    min_side: int
    one_image_side: int
    depths: tuple[int, int] | None = None  # (a, b): model.depth is a n + b
    sides_without_aux: tuple[int, int] | None = (
        None  # the two sides with model.aux_weight=0, where they differ
    )

    @property
    def usual_side(self) -> int:
        """The side of images that are made to measure: small, and enough for every norm where 64 pixels are."""
        return next((side for side in (32, 64) if side >= self.one_image_side), self.min_side)

    def sides(self, aux_weight: float | None = None) -> tuple[int, int]:
        """(min_side, one_image_side) of the model as it is asked for."""
        if aux_weight == 0 and self.sides_without_aux is not None:
            return self.sides_without_aux
        return self.min_side, self.one_image_side


CUSTOM = "custom"  # the choice, in the groups that have it, of a user's own by dotted path

CIFAR_RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
VGG_DEPTHS = (11, 13, 16, 19)
_RESNET = ("preact", "weights")
_DENSE = ("depth", "growth", "weights")
_AUX = ("aux_weight", "weights")
MODELS: dict[str, ModelInfo] = {
    **{
        f"resnet{depth}": ModelInfo(
            "cifar_resnet",
            f"CIFAR ResNet, {depth} layers: {(depth - 2) // 6} block(s) a stage, widths 16/32/64",
            ("width", "stem_stride", "preact", "residual", "dropout", "weights"),
            1,
            5,
        )
        for depth in CIFAR_RESNET_DEPTHS
    },
    "cifar_densenet": ModelInfo(
        "cifar_densenet",
        "DenseNet (L, k) for small images: model.depth=L, model.growth=k",
        _DENSE,
        4,
        8,
        (3, 4),
    ),
    "cifar_densenet_bc": ModelInfo(
        "cifar_densenet", "DenseNet-BC (L, k): with bottlenecks and compression 0.5", _DENSE, 4, 8, (6, 4)
    ),
    **{
        f"cifar_vgg{depth}": ModelInfo(
            "cifar_vgg", f"VGG-{depth} for 32x32: its convolutions and one linear layer", ("weights",), 32, 32
        )
        for depth in VGG_DEPTHS
    },
    "cifar_inception": ModelInfo("cifar_inception", "small Inception for 28x28 to 32x32", ("weights",), 1, 5),
    **{
        f"resnet{depth}": ModelInfo("resnet", f"torchvision's ResNet-{depth}", _RESNET, 1, 33)
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        name: ModelInfo("resnext", f"torchvision's ResNeXt-{words}", _RESNET, 1, 33)
        for name, words in {
            "resnext50_32x4d": "50, 32 groups of width 4",
            "resnext101_32x8d": "101, 32 groups of width 8",
            "resnext101_64x4d": "101, 64 groups of width 4",
        }.items()
    },
    **{
        f"wide_resnet{depth}_2": ModelInfo(
            "wide_resnet",
            f"torchvision's Wide ResNet-{depth}, twice as wide inside its blocks",
            _RESNET,
            1,
            33,
        )
        for depth in (50, 101)
    },
    **{
        f"densenet{depth}": ModelInfo("densenet", f"torchvision's DenseNet-{depth}", ("weights",), 29, 61)
        for depth in (121, 161, 169, 201)
    },
    "inception_v3": ModelInfo(
        "inception",
        "torchvision's Inception v3, for 299x299; model.aux_weight=0 leaves its auxiliary head out",
        _AUX,
        299,
        347,
        sides_without_aux=(75, 107),
    ),
    "googlenet": ModelInfo("inception", "torchvision's GoogLeNet, with two auxiliary heads", _AUX, 15, 47),
    **{
        f"vgg{depth}": ModelInfo("vgg", f"torchvision's VGG-{depth} with norms", ("weights",), 32, 32)
        for depth in VGG_DEPTHS
    },
}

MODEL_FAMILIES: dict[str, str] = {
    "cifar_resnet": "ResNet for small images, widths 16/32/64 (model.width, stem_stride, preact, residual, dropout)",
    "cifar_densenet": "DenseNet (L, k) for small images, -BC with bottlenecks (model.depth, growth)",
    "cifar_vgg": "VGG for 32x32",
    "cifar_inception": "a small Inception for 28x28 to 32x32",
    "resnet": "torchvision's ResNet (model.preact)",
    "resnext": "torchvision's ResNeXt (model.preact)",
    "wide_resnet": "torchvision's Wide ResNet (model.preact)",
    "densenet": "torchvision's DenseNet",
    "inception": "torchvision's Inception v3, for 299x299, and GoogLeNet (model.aux_weight)",
    "vgg": "torchvision's VGG with norms",
}

DATASETS: dict[str, str] = {
    "digits": "scikit-learn's 1,797 real digit images, augmented to 16x16; offline",
    "image_folder": "train/ and test/ trees of class folders of images (data.root=...)",
    "cifar10": "CIFAR-10 by torchvision's downloader (needs a network once)",
    "cifar100": "CIFAR-100, likewise",
    "fashion_mnist": "Fashion-MNIST, likewise; 28x28, its one channel repeated to three",
    "streamed_folder": "a tree like image_folder's too large for memory: files read for each batch",
    "imagenet": "ImageNet (train/ and val/ of class folders), streamed at 224 px (data.root=...)",
    "synthetic": "random images and labels of any size: throughput only, and labelled so",
}

# What every output says beside numbers on such data.
DATA_LABELS: dict[str, str] = {"synthetic": "synthetic data: throughput only"}

GROUPS: dict[str, str] = {
    "model": "the network",
    "norm": "the normalization layer, and over how many images it shares statistics",
    "data": "the images: held decoded on the training device, or streamed from disk",
    "optim": "optimizer, learning rate by a rule in the global batch, warmup, weight decay",
    "schedule": "the learning rate after warmup",
    "recipe": "what else shapes a step: label smoothing, zero-gamma, EMA, accumulation, clipping",
    "trainer": "the world: device kind, ranks, nodes, precision, memory format, compile, threads",
    "measure": "what is measured beside the error; of no effect on training",
    "logger": "where curves go besides the record",
    "experiment": "a whole study in one file: sweeps and settings together",
}

KEYS: dict[str, str] = {
    "name": "the sweep: its folder runs/<name> and its W&B group",
    "dir": "where run folders go",
    "seed": "initial weights, data order and augmentation",
    "epochs": "passes over the training images",
    "global_batch": "images per step over all ranks; per-device batch = global_batch / ranks",
    "evals_per_epoch": "validations in an epoch, evenly spaced",
    "target_error": "percent; the record then says at which step it was first reached",
    "reuse_records": "true: runs that other code has finished count as done; else a sweep that finds some is refused",
    "model.weights": "pretrained weights: a local file that torch.save wrote; null = none",
    "norm.batch_size": "NBS: images that share statistics; null = the per-device batch",
    "norm.placement": "before (default) or after the activation behind it",
    "optim.lr": "the peak learning rate, before optim.lr_rule",
    "data.root": "the folder of your images, with train/ and test/",
    "data.val_images": "training images held out and validated on, for tuning; null = the test set",
    "logger.mode": "offline, online or disabled; null = WANDB_MODE, else offline",
    "trainer.devices": "ranks on each node (CPU ranks use gloo, GPU ranks NCCL)",
}


@dataclass(frozen=True)
class Choice:
    """One choice of a Hydra group: `uses` names the keys that it reads and others of the group do not."""

    summary: str
    uses: tuple[str, ...] = ()


OPTIMIZERS: dict[str, Choice] = {
    "sgd": Choice("SGD with momentum, Nesterov's by default", ("momentum", "nesterov")),
    "adamw": Choice("AdamW (Loshchilov & Hutter 2019)", ("betas", "eps")),
    "lars": Choice(
        "LARS for large batches (You et al. 2017), timm's", ("momentum", "nesterov", "eps", "trust")
    ),
}

SCHEDULES: dict[str, Choice] = {
    "cosine": Choice("half a cosine from the peak to 0"),
    "step": Choice("times schedule.gamma at each of schedule.milestones", ("milestones", "gamma")),
    "constant": Choice("the peak to the end"),
    "range": Choice("from optim.lr up to schedule.lr_end, geometrically: an LR range test", ("lr_end",)),
}

# What is said of batch normalization, and conf/experiment/claims/ puts to the test.
CLAIMS: dict[str, str] = {
    "convergence": "BN converges in fewer steps than no normalization",
    "learning_rate": "BN trains at higher learning rates than no normalization",
    "accuracy": "BN is more accurate than no normalization at an equal budget, each at its best learning rate",
    "covariate_shift": "BN makes the inputs of layers drift less, and gradients more predictive",
    "regularization": "a smaller NBS closes the gap between training and test, with and without dropout",
    "depth": "BN trains networks that are too deep without it",
    "small_batch": "a small NBS hurts BN, and SyncBN, BRN, VBN and GN answer it",
    "placement": "BN before the activation is better than after it",
    "inference": "at a small NBS, BN's error in inference is above its error under the statistics that it trains with",
}

STATISTICS_POLICIES = ("mean", "rank0", "precise")
PLACEMENTS = ("before", "after")
INITS = ("none", "zero_gamma", "fixup")
FAMILIES = ("batch", "channel")
LR_RULES = ("none", "linear", "sqrt")
PRECISIONS = ("fp32", "bf16", "fp64")
AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")
STREAMED_AUGMENTATIONS = ("none", "resized_crop_flip")
ACCELERATORS = ("auto", "cpu", "gpu")


def check_known(key: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError that lists the known values if `value` is not one of them."""
    known = tuple(known)
    if value not in known:
        raise ValueError(unknown(key, value, known))


def check_depth(model: str, depth: int) -> None:
    """Raise ValueError that names the nearest depths if `model` cannot have `depth` layers."""
    depths = MODELS[model].depths
    if depths is None:
        return
    step, offset = depths
    blocks = max(1, (depth - offset) // step)
    if depth != step * blocks + offset:
        near = " or ".join(str(step * n + offset) for n in (blocks, blocks + 1))
        raise ValueError(f"model.depth={depth}: {model} has {step} n + {offset} layers; nearest are {near}")
