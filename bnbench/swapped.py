"""What a swap of norms made of a layer that was not asked for, as a run's record tells it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Such layers have no ReLU to include, as the last norm of a residual branch: nothing is other than asked.
ORDINARY = re.compile(r"(; )?act=False: no ReLU behind it alone")
GROUPS = re.compile(r"num_groups \d+, not (\d+): \d+ channels")


def changes(norm_swap: Mapping[str, Any]) -> list[str]:
    """The notes in a record's `norm_swap` that change what a layer is; of one kind the first, and how many more."""
    notes = norm_swap.get("notes")
    kinds: dict[str, list[str]] = {}
    for note in notes if isinstance(notes, list) else []:
        left = ORDINARY.sub("", str(note))
        if left.endswith(": ") or not left:
            continue
        groups = GROUPS.search(left)
        kind = left if groups is None else f"{groups[1]}{left[groups.end() :]}"
        kinds.setdefault(kind, []).append(left)
    return [
        first
        + (
            f"; likewise at {len(more)} other number{'s' if len(more) > 1 else ''} of channels"
            if more
            else ""
        )
        for first, *more in kinds.values()
    ]
