"""What the fields of every group share: strict types, and rules on one number."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any

import pydantic

from bnbench import dotted

# Numbers are numbers: true is not 1, and "8" is not 8.
Int = Annotated[int, pydantic.Strict()]
Float = Annotated[float, pydantic.Strict()]
# pydantic: a key that no field reads is an error; a folder may be named 2024.
STRICT: dict[str, Any] = {"extra": "forbid", "coerce_numbers_to_str": True}


class Named:
    """A choice by `name`: one of bnbench's, or a user's own by dotted path."""

    name: str

    @functools.cached_property
    def source(self) -> str | None:
        """Digest of the file of a user's own, as it was when the run was asked for; None for bnbench's.

        Ranks get it with the config, so that a run keeps its identity while somebody edits the file.
        """
        return dotted.source_digest(self.name) if dotted.is_dotted(self.name) else None


def not_chosen(group: str, name: str) -> str:
    """What is said of a user's own where another choice of its group stands."""
    return (
        f"{group}.name={name} is your own {group}: choose {group}=custom with it (in a sweep with others: a second "
        "command under the same name=...)"
    )


def positive(
    key: str, value: float | None, minimum: float = 0, inclusive: bool = False, way_out: str = ""
) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not (value >= minimum if inclusive else value > minimum):
        if isinstance(value, int):
            rule = f"a whole number of at least {minimum if inclusive else minimum + 1:g}"
        else:
            rule = f"a finite number {'at least' if inclusive else 'above'} {minimum}"
        raise ValueError(f"{key}={value} must be {rule}{way_out}")
