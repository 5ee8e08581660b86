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

from bnbench import catalog, dotted
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
    width: Int | None = None
    stem_stride: Int | None = None
    preact: bool | None = None
    depth: Int | None = None
    growth: Int | None = None
    aux_weight: Float | None = None
    weights: str | None = None
    options: dict[str, Any] | None = None  # of a user's own model

    def __post_init__(self) -> None:
        if dotted.is_dotted(self.name):
            dotted.check_findable("model.name", self.name)
        else:
            catalog.check_known("model", self.name, catalog.MODELS)
        for key in self.info.uses:
            if key != "weights" and getattr(self, key) is None:
                raise ValueError(
                    f"model.{key} has no value, and model={self.name} needs one: give model.{key}=..."
                )
        for key in ("width", "stem_stride", "depth", "growth"):
            _positive(f"model.{key}", getattr(self, key))
        _positive("model.aux_weight", self.aux_weight, inclusive=True)
        if "depth" in self.info.uses:
            assert self.depth is not None
            catalog.check_depth(self.name, self.depth)
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(
                f"model.weights={self.weights} is not there: give a file that torch.save wrote, or null"
            )

    @property
    def info(self) -> catalog.ModelInfo:
        if dotted.is_dotted(self.name):
            return catalog.ModelInfo(catalog.CUSTOM, "your own", ("weights", "options"), 1, 1)
        return catalog.MODELS[self.name]

    @property
    def label(self) -> str:
        """The name in a run's: of a dotted path its last part."""
        return self.name.rpartition(".")[2]

    def check_side(self, side: int, one_value: tuple[str, str] | None) -> None:
        """Raise ValueError if images of this height and width are too small to train on.

        `one_value` says what leaves one value a channel where a map has shrunk to one pixel, and a way out
        beside larger images; None: nothing does.
        """
        smallest, one_image = self.info.sides(self.aux_weight)
        one_image = 1 + (one_image - 1) * (self.stem_stride or 1)
        asked = f"model={self.name} on images of {side}x{side}"
        if side < smallest:
            without = self.info.sides_without_aux
            drop = self.aux_weight != 0 and without is not None and side >= without[0]
            out = ", or model.aux_weight=0 to leave its auxiliary head out" if drop else ""
            raise ValueError(
                f"{asked}: its maps would end before its layers do; it needs {smallest}x{smallest} "
                f"(data.image_size, where the data has one), or another model{out}"
            )
        if one_value is not None and side < one_image:
            cause, other_way = one_value
            raise ValueError(
                f"{asked} with {cause}: its last maps are one pixel, and one value has no variance; choose "
                f"{other_way}, or images from {one_image}x{one_image}"
            )

    def builder_options(self) -> dict[str, Any]:
        """What `models.build_model` takes beside the name, the classes and the norm."""
        given = {key: getattr(self, key) for key in self.info.uses if key != "options"}
        return (self.options or {}) | {key: value for key, value in given.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """What defines the network and its start: weights by their content, never by their path."""
        known = {"name": self.name, **{key: getattr(self, key) for key in self.info.uses}}
        del known["weights"]
        if self.weights is not None:
            known["weights"] = _file_digest(self.weights)
        if dotted.is_dotted(self.name):
            known["source"] = dotted.source_digest(self.name)
        return known

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this model does not read."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}
        return {k: v for k, v in values.items() if v is not None and k not in self.info.uses}

    def without_ignored(self) -> ModelConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)


@functools.cache  # one reading serves every run of a sweep
def _file_digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


CHOICES = {
    "statistics": catalog.STATISTICS_POLICIES,
    "placement": catalog.PLACEMENTS,
    "init": catalog.INITS,
}


@dataclass(frozen=True)
class NormConfig:
    __pydantic_config__ = STRICT
    name: str
    batch_size: Int | None = None
    statistics: str | None = None
    momentum: Float | None = None
    eps: Float | None = None
    num_groups: Int | None = None
    r_max: Float | None = None
    d_max: Float | None = None
    warmup: Float | None = None
    r_end: Float | None = None
    d_end: Float | None = None
    reference_size: Int | None = None
    after: Float | None = None
    learn_eps: bool | None = None
    affine: bool | None = None
    init: str | None = None
    placement: str = "before"
    family: str | None = None  # this and options: of a user's own norm
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if dotted.is_dotted(self.name):
            dotted.check_findable("norm.name", self.name)
            if self.family is None:
                raise ValueError(f"norm.name={self.name} is your own norm: choose norm=custom with it")
            catalog.check_known("norm.family", self.family, catalog.FAMILIES)
        else:
            catalog.check_known("norm", self.name, catalog.NORMS)
        for key in self.info.uses:
            if key != "batch_size" and getattr(self, key) is None:  # NBS alone has a default to derive
                raise ValueError(
                    f"norm.{key} has no value, and norm={self.name} needs one: give norm.{key}=..."
                )
        for key, known in CHOICES.items():
            if getattr(self, key) is not None:
                catalog.check_known(f"norm.{key}", getattr(self, key), known)
        if self.placement == "after" and self.info.includes_activation:
            raise ValueError(
                f"norm.placement=after with norm={self.name}: it includes the activation, so that there is none "
                "to come after; leave norm.placement=before, or choose another norm"
            )
        if self.momentum is not None and not 0 < self.momentum <= 1:
            raise ValueError(
                f"norm.momentum={self.momentum} must lie in (0, 1]: torch's convention, the weight of the new "
                "batch (a paper's decay of 0.9 is momentum 0.1 here)"
            )
        for key in ("eps", "num_groups", "reference_size"):
            _positive(f"norm.{key}", getattr(self, key))
        if self.after is not None and not 0 <= self.after < 1:
            raise ValueError(f"norm.after={self.after} is a fraction of training: it must lie in [0, 1)")
        if self.init == "zero_gamma" and self.affine is False:
            raise ValueError(
                "norm.init=zero_gamma zeroes the scale that norm.affine=false leaves out: set norm.affine=true, "
                "or choose norm.init=none or fixup"
            )
        self._check_renorm_schedule()

    def _check_renorm_schedule(self) -> None:
        _positive("norm.r_max", self.r_max, minimum=1, inclusive=True)
        _positive("norm.d_max", self.d_max, inclusive=True)
        times = {key: getattr(self, key) for key in ("warmup", "r_end", "d_end")}
        given = {key: value for key, value in times.items() if value is not None}
        for key, value in given.items():
            _positive(f"norm.{key}", value, inclusive=True)
        words = ", ".join(f"norm.{key}={value:g}" for key, value in given.items())
        if not all(value <= 1 for value in given.values()) and any(value % 1 for value in given.values()):
            raise ValueError(f"{words}: give all as fractions of training (at most 1), or all as whole steps")
        for key in ("r_end", "d_end"):
            if self.warmup is not None and given.get(key, math.inf) < self.warmup:
                raise ValueError(
                    f"norm.{key}={given[key]:g} comes before norm.warmup={self.warmup:g}: the limits open only "
                    "then; raise it, or lower norm.warmup"
                )

    @property
    def in_fractions(self) -> bool:
        """Whether warmup, r_end and d_end are fractions of training rather than steps."""
        return all(t is not None and t <= 1 for t in (self.warmup, self.r_end, self.d_end))

    @property
    def info(self) -> catalog.NormInfo:
        if not dotted.is_dotted(self.name):
            return catalog.NORMS[self.name]
        uses = ("batch_size", "family", "options") if self.family == "batch" else ("family", "options")
        return catalog.NormInfo(str(self.family), "your own", uses)

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys that this norm reads as it is set: frozen from the start, it has nothing to track."""
        if self.frozen_from_start:
            return tuple(key for key in self.info.uses if key in ("eps", "after"))
        return self.info.uses

    @property
    def frozen_from_start(self) -> bool:
        return self.name == "frozen" and self.after == 0

    def ignored(self) -> dict[str, Any]:
        """The settings given here that this kind does not read."""
        always = ("name", "placement")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in always}
        read = set(self.info.uses) - ({"batch_size"} if self.frozen_from_start else set())
        return {k: v for k, v in values.items() if v is not None and k not in read}

    def without_ignored(self) -> NormConfig:
        nothing: dict[str, Any] = dict.fromkeys(self.ignored())
        return dataclasses.replace(self, **nothing)


# Keys that not all data read, and that these need.
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
            _positive(f"data.{key}", getattr(self, key))
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
        if self.data.side is not None:
            self.model.check_side(self.data.side, self._one_value)
        if self.norm.name == "ghost" and self.span.kind != "ghost":
            divisors = [n for n in range(1, self.per_device_batch) if self.per_device_batch % n == 0]
            asked = "null" if self.norm.batch_size is None else self.norm.batch_size
            raise ValueError(
                f"norm.batch_size={asked} with norm=ghost must lie below the per-device batch of "
                f"{self.per_device_batch} and divide it: choose {', '.join(map(str, divisors)) or 'norm=bn'}"
            )

    @property
    def per_device_batch(self) -> int:
        return self.global_batch // self.trainer.world_size

    @property
    def nbs(self) -> int | None:
        """Images that share statistics; None for a norm that treats each image by itself."""
        if self.norm.info.family != "batch" or self.norm.frozen_from_start:
            return None
        if self.norm.name == "syncbn":
            return self.global_batch
        return self.per_device_batch if self.norm.batch_size is None else self.norm.batch_size

    @property
    def span(self) -> Span:
        if self.nbs is None:
            return DEVICE
        return span_of(self.nbs, self.per_device_batch, self.trainer.world_size, self.trainer.devices)

    @property
    def kind(self) -> str:
        """The norm that a run's identity names: `syncbn` is `bn` at world, `ghost` is `bn` below a device."""
        return self.norm.info.alias_of or self.norm.name

    @property
    def _one_value(self) -> tuple[str, str] | None:
        """What takes each channel of each image by itself, so that a map of one pixel has no variance."""
        if self.norm.name == "in":
            return "norm=in", "another norm"
        if self.nbs == 1 and not dotted.is_dotted(self.norm.name):
            return "an NBS of 1", "norm.batch_size=2 or more"
        return None

    def ignored(self) -> dict[str, Any]:
        """Settings of this run that nothing would read."""
        parts = {"model": self.model.ignored(), "norm": self.norm.ignored(), "optim": self.optim.ignored()}
        return {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}

    def without_ignored(self) -> RunConfig:
        return dataclasses.replace(
            self,
            model=self.model.without_ignored(),
            norm=self.norm.without_ignored(),
            optim=self.optim.without_ignored(),
        )

    def identity(self) -> dict[str, Any]:
        """What defines this run; two runs with equal identities are the same measurement."""
        norm = {key: getattr(self.norm, key) for key in self.norm.reads if key != "batch_size"}
        norm["placement"] = self.norm.placement
        if dotted.is_dotted(self.norm.name):
            norm["source"] = dotted.source_digest(self.norm.name)
        return {
            "model": self.model.identity(),
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
        return f"{self.model.label}-{self.kind.rpartition('.')[2]}{nbs}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """Where this run's files go: what it is, and the digest that sets it apart."""
        return Path(self.dir) / f"{self.run_name}-{digest(self.identity())}"


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from composed values; ValueError with one line if one is of the wrong type or rule."""
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(_sized(values))
    except pydantic.ValidationError as error:
        raise ValueError(_first_line(error.errors()[0])) from None


def _sized(values: Mapping[str, Any]) -> dict[str, Any]:
    """Made-up images without a size are as large as the model asks: data alone does not know it."""
    known, data = dict(values), values.get("data")
    if isinstance(data, Mapping) and data.get("name") == "synthetic" and data.get("image_size") is None:
        model = values.get("model")
        info = catalog.MODELS.get(str(model.get("name"))) if isinstance(model, Mapping) else None
        known["data"] = {**data, "image_size": info.usual_side if info else 32}
    return known


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
