"""The network a run trains."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench import catalog, dotted

from .fields import STRICT, Float, Int, Named, not_chosen, positive


@dataclass(frozen=True)
class ModelConfig(Named):
    __pydantic_config__ = STRICT
    name: str
    width: Int | None = None
    stem_stride: Int | None = None
    preact: bool | None = None
    residual: bool | None = None
    dropout: Float | None = None
    depth: Int | None = None
    growth: Int | None = None
    aux_weight: Float | None = None
    weights: str | None = None
    options: dict[str, Any] | None = None  # of a user's own model

    def __post_init__(self) -> None:
        if dotted.is_dotted(self.name):
            dotted.check_findable("model.name", self.name)
            if self.options is None:
                raise ValueError(not_chosen("model", self.name))
        else:
            catalog.check_known("model", self.name, catalog.MODELS)
        for key in self.info.uses:
            if key != "weights" and getattr(self, key) is None:
                raise ValueError(
                    f"model.{key} has no value, and model={self.name} needs one: give model.{key}=..."
                )
        for key in ("width", "stem_stride", "depth", "growth"):
            positive(f"model.{key}", getattr(self, key))
        positive("model.aux_weight", self.aux_weight, inclusive=True)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} is a probability: it must lie in [0, 1)")
        if self.preact and self.residual is False:
            raise ValueError(
                "model.residual=false with model.preact=true: the pre-activation order is one of residual blocks; "
                "set model.preact=false"
            )
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
            known["weights"] = self._weights_digest
        if dotted.is_dotted(self.name):
            known["source"] = self.source
        return known

    @functools.cached_property  # goes to the ranks, as `source` does
    def _weights_digest(self) -> str | None:
        return None if self.weights is None else _file_digest(self.weights)

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
