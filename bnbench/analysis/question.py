"""What is asked of the records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["line", "panel", "page"]
FAMILIES: tuple[str, ...] = get_args(Family)


@dataclass(frozen=True)
class Question:
    """`baseline`: the norm, or line, that the others are held against.

    `target`: the error in percent that times are to; None: each panel's median final error. `resolve`: the difference
    in points that the number of seeds needed is for. `family`: what Holm's correction goes over.
    """

    baseline: str = "bn"
    target: float | None = None
    resolve: float = 1.0
    family: Family = "line"

    def __post_init__(self) -> None:
        if not (self.resolve > 0 and math.isfinite(self.resolve)):
            raise ValueError(
                f"--resolve {self.resolve:g} is no difference: it counts points of error, above 0"
            )
        if self.target is not None and not 0 <= self.target <= 100:
            raise ValueError(f"--target {self.target:g} is no error: it is in percent, 0 to 100")


DEFAULT = Question()
