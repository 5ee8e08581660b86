"""Whose fault an error is: a user's, which one line tells, or a bug of ours, whose traceback is wanted."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from typing import Any

RAISE = dis.opmap["RAISE_VARARGS"]


def is_told(error: ValueError) -> bool:
    """Whether bnbench raised it to tell a user something.

    Not so what a library raised, nor what Python did in a line of ours: `max()` of nothing says nothing to a user.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not _module(trace.tb_frame.f_globals).startswith("bnbench"):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == RAISE


def _module(names: Mapping[str, Any]) -> str:
    """A module's name, also of one that `python -m` runs as `__main__`."""
    spec = names.get("__spec__")
    return str(names.get("__name__", "") if spec is None else spec.name)
