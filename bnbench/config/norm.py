"""The normalization of a run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from bnbench import catalog, dotted

from .fields import STRICT, Float, Int, Named, not_chosen, positive

CHOICES = {
    "statistics": catalog.STATISTICS_POLICIES,
    "placement": catalog.PLACEMENTS,
    "init": catalog.INITS,
}


@dataclass(frozen=True)
class NormConfig(Named):
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
                raise ValueError(not_chosen("norm", self.name))
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
            positive(f"norm.{key}", getattr(self, key))
        if self.after is not None and not 0 <= self.after < 1:
            raise ValueError(f"norm.after={self.after} is a fraction of training: it must lie in [0, 1)")
        if self.init == "zero_gamma" and self.affine is False:
            raise ValueError(
                "norm.init=zero_gamma zeroes the scale that norm.affine=false leaves out: set norm.affine=true, "
                "or choose norm.init=none or fixup"
            )
        self._check_renorm_schedule()

    def _check_renorm_schedule(self) -> None:
        positive("norm.r_max", self.r_max, minimum=1, inclusive=True)
        positive("norm.d_max", self.d_max, inclusive=True)
        times = {key: getattr(self, key) for key in ("warmup", "r_end", "d_end")}
        given = {key: value for key, value in times.items() if value is not None}
        for key, value in given.items():
            positive(f"norm.{key}", value, inclusive=True)
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
