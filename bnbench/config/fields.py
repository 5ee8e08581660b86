"""What the fields of every group share: strict types, and rules on one number."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pydantic

# Numbers are numbers: true is not 1, and "8" is not 8.
Int = Annotated[int, pydantic.Strict()]
Float = Annotated[float, pydantic.Strict()]
# pydantic: a key that no field reads is an error; a folder may be named 2024.
STRICT: dict[str, Any] = {"extra": "forbid", "coerce_numbers_to_str": True}


def positive(key: str, value: float | None, minimum: float = 0, inclusive: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not (value >= minimum if inclusive else value > minimum):
        rule = "at least" if inclusive else "above"
        raise ValueError(f"{key}={value} must be a finite number {rule} {minimum}")
