"""The one sentence for a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, value: str, known: Iterable[str]) -> str:
    """`unknown norm 'bnn'; known: bn, gn (did you mean bn?)`."""
    known = list(known)
    close = difflib.get_close_matches(value, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {what} {value!r}; known: {', '.join(known)}{hint}"
