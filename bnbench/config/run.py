"""One run: everything that a rank needs to train it, and the identity that defines it."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from bnbench import catalog, dotted
from bnbench.records import SCHEMA, Record, Status, digest, flatten
from bnbench.span import DEVICE, Span, span_of

from .data import DataConfig
from .fields import STRICT, Float, Int, positive
from .measure import MeasureConfig
from .model import ModelConfig
from .norm import NormConfig
from .optim import OptimConfig, RecipeConfig, ScheduleConfig
from .trainer import LoggerConfig, TrainerConfig


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
    schedule: ScheduleConfig
    recipe: RecipeConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    measure: MeasureConfig
    evals_per_epoch: Int = 1
    target_error: Float | None = None  # percent; the record says at which step it was reached
    reuse_records: bool = False  # count what other code has finished as done
    claim: str | None = None  # that this run is evidence for; of no effect on it

    def __post_init__(self) -> None:
        if self.claim is not None:
            catalog.check_known("claim", self.claim, catalog.CLAIMS)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"name={self.name!r} names a folder and a W&B group: use letters, digits, -, _ and . (not first)"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**32")
        positive("epochs", self.epochs)
        positive("global_batch", self.global_batch)
        positive("evals_per_epoch", self.evals_per_epoch)
        if self.target_error is not None and not 0 <= self.target_error <= 100:
            raise ValueError(f"target_error={self.target_error} is an error in percent: between 0 and 100")
        if self.measure.test and self.data.val_images is None:
            raise ValueError(
                "measure.test=true: without data.val_images a run is validated on the test set already; hold images "
                "out by data.val_images=..., or set measure.test=false"
            )
        if self.schedule.name == "range" and self.optim.warmup_epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs:g} with schedule=range: the range itself starts low; "
                "set optim.warmup_epochs=0"
            )
        if self.schedule.name == "range" and self.schedule.lr_end is not None:
            peak = self.optim.peak_lr(self.global_batch)
            if self.schedule.lr_end <= peak:
                raise ValueError(
                    f"schedule.lr_end={self.schedule.lr_end} must be above the learning rate that the range starts "
                    f"from, {peak:g}: raise it, or lower optim.lr"
                )
        self._check_graphs()
        self._check_recordable()
        self._check_batch()
        if self.optim.warmup_epochs > self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs} is longer than epochs={self.epochs}: lower it"
            )
        _ = self.model.source, self.norm.source, self.data.source  # from here on they stay
        _ = self.span  # raises where the NBS cannot be reached
        _ = self.begun_elsewhere  # raises where it would be another training
        if self.data.side is not None:
            self.model.check_side(self.data.side, self._one_value)
        if self.norm.name == "ghost" and self.span.kind != "ghost":
            divisors = [n for n in range(1, self.per_device_batch) if self.per_device_batch % n == 0]
            asked = "null" if self.norm.batch_size is None else self.norm.batch_size
            raise ValueError(
                f"norm.batch_size={asked} with norm=ghost must lie below the per-device batch of "
                f"{self.per_device_batch} and divide it: choose {', '.join(map(str, divisors)) or 'norm=bn'}"
            )

    def _check_graphs(self) -> None:
        """Raise ValueError for what a captured step would not follow."""
        if not self.trainer.cuda_graphs:
            return
        if self.recipe.accumulate > 1:
            raise ValueError(
                f"trainer.cuda_graphs=true with recipe.accumulate={self.recipe.accumulate}: a captured backward pass "
                "overwrites gradients rather than adding to them; set one of them to false or 1"
            )
        if self.kind == "frozen" and self.norm.after:
            raise ValueError(
                f"trainer.cuda_graphs=true with norm.after={self.norm.after:g}: a captured step goes on with the "
                "statistics of its batch; set trainer.cuda_graphs=false"
            )

    def _check_recordable(self) -> None:
        for key, value in flatten(dataclasses.asdict(self)).items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise ValueError(
                    f"{key}={value} cannot be written into a record, which holds finite numbers: give one, or null"
                ) from None

    def _check_batch(self) -> None:
        world, parts = self.trainer.world_size, self.recipe.accumulate
        if self.global_batch % (world * parts):
            whole = world * parts
            below = self.global_batch - self.global_batch % whole
            choices = ", ".join(str(n) for n in (below, below + whole) if n)
            by = "" if parts == 1 else f" x recipe.accumulate={parts}"
            raise ValueError(
                f"global_batch={self.global_batch} is not divisible by the {world} ranks of "
                f"trainer.devices={self.trainer.devices} x trainer.num_nodes={self.trainer.num_nodes}{by}: every "
                f"rank takes the same number of images; choose {choices}, or other devices"
            )

    @property
    def per_device_batch(self) -> int:
        """Images of one forward pass on one rank; accumulation makes it smaller than a rank's share of a step."""
        return self.global_batch // (self.trainer.world_size * self.recipe.accumulate)

    @property
    def nbs(self) -> int | None:
        """Images that share statistics; None for a norm that treats each image by itself."""
        if self.norm.info.family != "batch" or self.norm.frozen_from_start:
            return None
        if self.norm.name == "syncbn":
            return self.per_device_batch * self.trainer.world_size
        return self.per_device_batch if self.norm.batch_size is None else self.norm.batch_size

    @property
    def span(self) -> Span:
        if self.nbs is None:
            return DEVICE
        try:
            return span_of(self.nbs, self.per_device_batch, self.trainer.world_size, self.trainer.devices)
        except ValueError as error:
            parts = self.recipe.accumulate
            never = f"; recipe.accumulate={parts} makes each pass smaller, and never enlarges NBS"
            raise ValueError(f"{error}{never if parts > 1 else ''}") from None

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

    @property
    def begun_elsewhere(self) -> RunConfig | None:
        """This run on the `trainer.resume_world` ranks that it was begun on; None if it was not, or was on as many.

        Raises ValueError unless it is the same training but for rounding: equal global batch, NBS and accumulation.
        """
        size = self.trainer.resume_world
        if size is None or size == self.trainer.world_size:
            return None
        there = dataclasses.replace(self.trainer, devices=size, num_nodes=1, resume_world=None)
        asked = f"trainer.resume_world={size}"
        try:
            other = dataclasses.replace(self, trainer=there)
        except ValueError as error:
            raise ValueError(f"{asked}: on {size} ranks this run could not have begun: {error}") from None
        if other.nbs != self.nbs:
            raise ValueError(
                f"{asked}: there NBS was {other.nbs}, here it is {self.nbs}, and statistics over other images are "
                f"another training: set norm.batch_size={other.nbs}"
            )
        return other

    def ignored(self) -> dict[str, Any]:
        """Settings of this run that nothing would read."""
        parts = {part: getattr(self, part).ignored() for part in ("model", "norm", "optim", "schedule")}
        return {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}

    def without_ignored(self) -> RunConfig:
        return dataclasses.replace(
            self,
            model=self.model.without_ignored(),
            norm=self.norm.without_ignored(),
            optim=self.optim.without_ignored(),
            schedule=self.schedule.without_ignored(),
        )

    def identity(self) -> dict[str, Any]:
        """What defines this run; two runs with equal identities are the same measurement."""
        norm = {key: getattr(self.norm, key) for key in self.norm.reads if key != "batch_size"}
        norm["placement"] = self.norm.placement
        if self.nbs is not None and self.norm.statistics == "precise":
            norm["precise_steps"] = self.measure.precise_steps
        if dotted.is_dotted(self.norm.name):
            norm["source"] = self.norm.source
        return {
            "model": self.model.identity(),
            "norm": {"name": self.kind, **norm},
            "nbs": self.nbs,
            "per_device_batch": self.per_device_batch,
            "global_batch": self.global_batch,
            "world_size": self.trainer.world_size,
            "data": self.data.identity(),
            "recipe": {
                "epochs": self.epochs,
                **self.optim.identity(),
                "schedule": self.schedule.identity(),
                **self.recipe.identity(),
            },
            "precision": self.trainer.precision,
            "execution": self.trainer.execution(),
            **({"asked": asked} if (asked := self._asked()) else {}),
            "seed": self.seed,
        }

    def _asked(self) -> dict[str, Any]:
        """Settings that define a number of the record without touching training; only those that are asked for."""
        found: dict[str, Any] = {}
        if self.target_error is not None:  # the first evaluation that reaches it
            found |= {"target_error": self.target_error, "evals_per_epoch": self.evals_per_epoch}
        if self.schedule.name == "range":  # the windows whose loss tells stable from unstable
            found["log_every"] = self.trainer.log_every
        return found

    def record(self, status: Status, **came: Any) -> Record:
        """The record of this run: what it is, and `came`, the fields of a Record that say what came of it."""
        identity = self.identity()
        return Record(
            schema=SCHEMA,
            id=digest(identity),
            name=self.run_name,
            identity=identity,
            status=status,
            config=dataclasses.asdict(self),
            **came,
        )

    @property
    def run_name(self) -> str:
        nbs = "" if self.nbs is None else f"-nbs{self.nbs}"
        return f"{self.model.label}-{self.kind.rpartition('.')[2]}{nbs}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """Where this run's files go: what it is, and the digest that sets it apart."""
        return Path(self.dir) / f"{self.run_name}-{digest(self.identity())}"


# The keys that take a list, and what of; the errors of one that is none, is too short or too long.
LISTS = {
    "data.mean": "three numbers, such as [0.49,0.48,0.45]",
    "data.std": "three numbers, such as [0.25,0.24,0.26]",
    "optim.betas": "two numbers, such as [0.9,0.999]",
    "schedule.milestones": "numbers, such as [0.5,0.75]",
    "logger.tags": "words, such as [a,b]",
}
NO_SUCH_LIST = ("tuple_type", "missing", "too_long")


@functools.cache
def _adapter() -> pydantic.TypeAdapter[RunConfig]:
    return pydantic.TypeAdapter(RunConfig)


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from composed values; ValueError with one line if one is of the wrong type or rule."""
    try:
        return _adapter().validate_python(_sized(values))
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
    if (form := LISTS.get(".".join(map(str, error["loc"][:2])))) and error["type"] in NO_SUCH_LIST:
        key = ".".join(error["loc"][:2])
        return f"{key}={_written(error['input'])} must be a list of {form}"
    if error["type"] == "missing":
        return f"{key} is missing: every run needs it"
    several = _several(error["input"]) if error["type"] == "int_type" else ""
    if several:
        return f"{key}={error['input']}: a run has one whole number; for several: -m '{key}={several}'"
    return f"{key}={_written(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _written(value: Any) -> str:
    """A value as a command line has it, but for the quotes that tell text from numbers."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _several(value: Any) -> str:
    """What a sweep over these whole numbers is written as, where someone gave a list or `0-4`; else ""."""
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return ",".join(map(str, value))
    ends = re.fullmatch(r"(\d+)(?:-|:|\.\.\.?)(\d+)", value) if isinstance(value, str) else None
    return f"range({ends[1]},{int(ends[2]) + 1})" if ends else ""
