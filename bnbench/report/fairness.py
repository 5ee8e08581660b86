"""The fairness of what was compared, on the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bnbench.fairness import Fairness, called, fairness
from bnbench.records import Record, cell_of, flatten


def of(records: Iterable[Record]) -> Fairness:
    """As a sweep tells it before it starts, from identities; a record knows its number of training images."""
    return fairness((flatten(cell_of(record.identity)), _images(record)) for record in records)


def _images(record: Record) -> int | None:
    value: Any = flatten(record.provenance).get("data.train_images")
    return value if isinstance(value, int) else None


def section(records: Iterable[Record]) -> str:
    """Markdown: the factors that differ besides the swept ones. "" for one cell."""
    found = of(records)
    if not found.swept and not found.besides:
        return ""
    swept = ", ".join(map(called, found.swept)) or "nothing"
    head = f"## Fairness: what differs besides the swept factors\n\nSwept: {swept}. "
    if not found.besides:
        return f"{head}No factor differs besides.\n"
    return f"{head}Besides, these differ:\n\n" + "".join(f"- {difference}\n" for difference in found.besides)
