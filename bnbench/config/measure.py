"""What a run measures beside its error: of no effect on training, whose weights stay bit-identical."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import STRICT, Int, positive


@dataclass(frozen=True)
class MeasureConfig:
    __pydantic_config__ = STRICT
    statistics: bool
    generalization: bool
    test: bool
    precise_steps: Int
    health_every: Int | None
    speed_every: Int | None
    landscape: bool
    landscape_every: Int

    def __post_init__(self) -> None:
        for key in ("precise_steps", "health_every", "speed_every", "landscape_every"):
            positive(f"measure.{key}", getattr(self, key))
