"""The one sentence for a name that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MOST = 3  # names in a hint; more of them are none


def unknown(what: str, value: str, known: Iterable[str], meant: Sequence[str] = ()) -> str:
    """`unknown norm 'bnn'; known: bn, gn (did you mean bn?)`. `meant`: what else than one of the known it may be."""
    known = list(known)
    close = meant or near(value, known)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"unknown {what} {value!r}; known: {', '.join(known)}{hint}"


def near(value: str, known: Sequence[str]) -> list[str]:
    """The names that a wrong one may stand for: the closest, one that ends in it, or the few that hold it."""
    value, named = value.lower(), {name.lower(): name for name in known}
    ends = [name for name in known if last(name).lower() == last(value)]
    close = difflib.get_close_matches(value, named, n=1)
    holding = [name for name in known if len(value) > 2 and value in name.lower()]
    return next(
        (names for names in (ends, [named[name] for name in close], holding) if 0 < len(names) <= MOST), []
    )


def last(name: str) -> str:
    """The last part of a dotted key or of a path."""
    return re.split(r"[./]", name)[-1]
