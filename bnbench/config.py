"""What a run is asked to be: typed, checked, and reduced to the identity that defines it.

No torch here, so that a mistake is reported before anything heavy is imported. Each class mirrors
one Hydra group in conf/; `__post_init__` raises ValueError with the value, the rule and the way out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from bnbench import catalog
from bnbench.records import digest
from bnbench.span import DEVICE, Span, span_of

# Numbers are numbers: true is not 1, and "8" is not 8.
Int = Annotated[int, pydantic.Strict()]
Float = Annotated[float, pydantic.Strict()]
# pydantic: a key that no field reads is an error; a folder may be named 2024.
STRICT: dict[str, Any] = {"extra": "forbid", "coerce_numbers_to_str": True}


def _positive(key: str, value: float | None, minimum: float = 0, inclusive: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not (value >= minimum if inclusive else value > minimum):
        rule = "at least" if inclusive else "above"
        raise ValueError(f"{key}={value} must be a finite number {rule} {minimum}")


@dataclass(frozen=True)
class ModelConfig:
    __pydantic_config__ = STRICT
    name: str
    width: Int = 16
    stem_stride: Int = 1

    def __post_init__(self) -> None:
        catalog.check_known("model", self.name, catalog.MODELS)
        _positive("model.width", self.width)
        _positive("model.stem_stride", self.stem_stride)


@dataclass(frozen=True)
class NormConfig:
    __pydantic_config__ = STRICT
    name: str
    batch_size: Int | None = None
    statistics: str | None = None
    momentum: Float | None = None
    eps: Float | None = None
    num_groups: Int | None = None

    def __post_init__(self) -> None:
        catalog.check_known("norm", self.name, catalog.NORMS)
        for key in self.info.uses:
            if key != "batch_size" and getattr(self, key) is None:  # NBS alone has a default to derive
                raise ValueError(
                    f"norm.{key} has no value, and norm={self.name} needs one: give norm.{key}=..."
                )
        if self.statistics is not None:
            catalog.check_known("norm.statistics", self.statistics, catalog.STATISTICS_POLICIES)
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise ValueError(
                f"norm.momentum={self.momentum} must lie in (0, 1]: torch's convention, the weight of the new "
                "batch (a paper's decay of 0.9 is momentum 0.1 here)"
            )
        _positive("norm.eps", self.eps)
        _positive("norm.num_groups", self.num_groups)

    @property
    def info(self) -> catalog.NormInfo:
        return catalog.NORMS[self.name]

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this kind does not read."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}
        return {k: v for k, v in values.items() if v is not None and k not in self.info.uses}

    def without_ignored(self) -> NormConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)


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

    def __post_init__(self) -> None:
        catalog.check_known("data", self.name, catalog.DATASETS)
        catalog.check_known("data.augment", self.augment, catalog.AUGMENTATIONS)
        for key in ("image_size", "max_train", "max_test"):
            _positive(f"data.{key}", getattr(self, key))
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(
                f"data.mean={list(self.mean)}, data.std={list(self.std)}: three finite numbers each, "
                "the deviations positive"
            )
        reads = {"image_folder": ("root", "image_size"), "cifar10": ("root",)}.get(self.name, ())
        for key in ("root", "image_size"):
            value = getattr(self, key)
            if key in reads and value is None:
                raise ValueError(
                    f"data.{key} has no value, and data={self.name} needs one: give data.{key}=..."
                )
            if key not in reads and value is not None:
                raise ValueError(f"data.{key}={value} would be ignored by data={self.name}: leave it out")
        if self.name == "image_folder":
            assert self.root is not None
            for split in ("train", "test"):
                if not (Path(self.root) / split).is_dir():
                    raise ValueError(
                        f"data.root={self.root} has no {split}/ folder: image_folder needs train/ and test/, "
                        "each with one folder of images per class"
                    )

    def identity(self) -> dict[str, Any]:
        """What defines the data: never its path. A folder is known by the names of the files in it."""
        known = dataclasses.asdict(self)
        del known["root"], known["download"]
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


@dataclass(frozen=True)
class OptimConfig:
    __pydantic_config__ = STRICT
    name: str
    lr: Float
    lr_rule: str
    base_batch: Int | None
    momentum: Float
    nesterov: bool
    weight_decay: Float
    decay_norm: bool
    warmup_epochs: Float

    def __post_init__(self) -> None:
        catalog.check_known("optim", self.name, ("sgd",))
        catalog.check_known("optim.lr_rule", self.lr_rule, catalog.LR_RULES)
        _positive("optim.lr", self.lr)
        _positive("optim.base_batch", self.base_batch)
        _positive("optim.weight_decay", self.weight_decay, inclusive=True)
        _positive("optim.warmup_epochs", self.warmup_epochs, inclusive=True)
        if self.lr_rule != "none" and self.base_batch is None:
            raise ValueError(
                f"optim.lr_rule={self.lr_rule} scales optim.lr by global_batch / optim.base_batch: "
                "give optim.base_batch, the global batch that optim.lr is meant for"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum} must lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov=true needs optim.momentum above 0: set optim.nesterov=false")

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warmup, by the stated rule in the global batch."""
        if self.base_batch is None or self.lr_rule == "none":
            return self.lr
        ratio = global_batch / self.base_batch
        return self.lr * {"linear": ratio, "sqrt": ratio**0.5}[self.lr_rule]

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this recipe does not read."""
        unread = self.lr_rule == "none" and self.base_batch is not None
        return {"base_batch": self.base_batch} if unread else {}

    def without_ignored(self) -> OptimConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)


@dataclass(frozen=True)
class TrainerConfig:
    __pydantic_config__ = STRICT
    accelerator: str
    devices: Int
    num_nodes: Int
    precision: str
    threads: Int | None
    log_every: Int
    save_weights: bool

    def __post_init__(self) -> None:
        catalog.check_known("trainer.accelerator", self.accelerator, catalog.ACCELERATORS)
        catalog.check_known("trainer.precision", self.precision, catalog.PRECISIONS)
        for key in ("devices", "num_nodes", "threads", "log_every"):
            _positive(f"trainer.{key}", getattr(self, key))

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class LoggerConfig:
    __pydantic_config__ = STRICT
    name: str
    project: str = "bnbench"
    entity: str | None = None
    mode: str = "offline"

    def __post_init__(self) -> None:
        catalog.check_known("logger", self.name, ("wandb", "none"))
        catalog.check_known(
            "logger.mode (which follows WANDB_MODE)", self.mode, ("offline", "online", "disabled")
        )


@dataclass(frozen=True)
class RunConfig:
    """One run: everything that a rank needs to train it."""

    __pydantic_config__ = STRICT
    name: str
    dir: str
    seed: Int
    epochs: Int
    global_batch: Int
    model: ModelConfig
    norm: NormConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name={self.name!r} names a folder and a W&B group: use letters, digits, -, _ and . (not first)"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**32")
        _positive("epochs", self.epochs)
        _positive("global_batch", self.global_batch)
        world = self.trainer.world_size
        if self.global_batch % world:
            below = self.global_batch - self.global_batch % world
            choices = ", ".join(str(n) for n in (below, below + world) if n)
            raise ValueError(
                f"global_batch={self.global_batch} is not divisible by the {world} ranks of "
                f"trainer.devices={self.trainer.devices} x trainer.num_nodes={self.trainer.num_nodes}: every "
                f"rank takes the same number of images; choose {choices}, or other devices"
            )
        if self.optim.warmup_epochs > self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs} is longer than epochs={self.epochs}: lower it"
            )
        _ = self.span  # raises where the NBS cannot be reached

    @property
    def per_device_batch(self) -> int:
        return self.global_batch // self.trainer.world_size

    @property
    def nbs(self) -> int | None:
        """Images that share statistics; None for a norm that treats each image by itself."""
        if self.norm.info.family != "batch":
            return None
        if self.norm.name == "syncbn":
            return self.global_batch
        return self.per_device_batch if self.norm.batch_size is None else self.norm.batch_size

    @property
    def span(self) -> Span:
        if self.nbs is None:
            return DEVICE
        return span_of(self.nbs, self.per_device_batch, self.trainer.world_size)

    @property
    def kind(self) -> str:
        """The norm that a run's identity names: `syncbn` is `bn` at world."""
        return self.norm.info.alias_of or self.norm.name

    def ignored(self) -> dict[str, Any]:
        """Settings of this run that nothing would read."""
        norm = {f"norm.{key}": value for key, value in self.norm.ignored().items()}
        return norm | {f"optim.{key}": value for key, value in self.optim.ignored().items()}

    def without_ignored(self) -> RunConfig:
        return dataclasses.replace(self, norm=self.norm.without_ignored(), optim=self.optim.without_ignored())

    def identity(self) -> dict[str, Any]:
        """What defines this run; two runs with equal identities are the same measurement."""
        norm = {key: getattr(self.norm, key) for key in self.norm.info.uses if key != "batch_size"}
        return {
            "model": dataclasses.asdict(self.model),
            "norm": {"name": self.kind, **norm},
            "nbs": self.nbs,
            "per_device_batch": self.per_device_batch,
            "global_batch": self.global_batch,
            "world_size": self.trainer.world_size,
            "data": self.data.identity(),
            "recipe": {"epochs": self.epochs, **dataclasses.asdict(self.optim.without_ignored())},
            "precision": self.trainer.precision,
            "seed": self.seed,
        }

    @property
    def run_name(self) -> str:
        nbs = "" if self.nbs is None else f"-nbs{self.nbs}"
        return f"{self.model.name}-{self.kind}{nbs}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """Where this run's files go: what it is, and the digest that sets it apart."""
        return Path(self.dir) / f"{self.run_name}-{digest(self.identity())}"


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from composed values; ValueError with one line if one is of the wrong type or rule."""
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise ValueError(_first_line(error.errors()[0])) from None


def _first_line(error: Any) -> str:
    rule = error.get("ctx", {}).get("error")
    if rule is not None:  # raised by a __post_init__ above
        return str(rule)
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        choice = f" with this choice of {error['loc'][0]}" if len(error["loc"]) > 1 else ""
        return f"{key} is read by nothing{choice}: remove it"
    if error["type"] == "missing":
        return f"{key} is missing: every run needs it"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
