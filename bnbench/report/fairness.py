"""The fairness of what was compared, and what each norm truly was, on the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bnbench.fairness import UNEVEN, Fairness, called, fairness
from bnbench.records import Record, cell_of, digest, flatten, value_at
from bnbench.report.numbers import short
from bnbench.swapped import changes

KEPT = (
    "\nact=False: such a layer runs without the activation that its norm includes, and the network keeps its own "
    "behind it.\n"
)


def of(records: Iterable[Record]) -> Fairness:
    """As a sweep tells it before it starts, from identities; a record knows its number of training images."""
    cells: dict[str, tuple[dict[str, Any], int | None]] = {}
    for record in records:
        images = value_at(record.provenance, "data.train_images")
        cell, known = cell_of(record.identity), images if isinstance(images, int) else None
        cells.setdefault(f"{digest(cell, 64)} {known}", (cell, known))
    return fairness((flatten(cell), images) for cell, images in cells.values())


def section(records: Sequence[Record]) -> str:
    """Markdown: the factors that differ besides the swept ones, whether seeds are paired, what the swap changed.

    "" for one cell whose norms are what was asked.
    """
    found, changed = of(records), swapped(records)
    if not found.swept and not found.besides:
        return f"## Fairness\n{changed}" if changed else ""
    swept = ", ".join(map(called, found.swept)) or "nothing"
    head = f"## Fairness: what differs besides the swept factors\n\nSwept: {swept}. "
    besides, uneven = ("".join(f"- {each}\n" for each in some) for some in (found.besides, found.uneven))
    told = f"Besides, these differ:\n\n{besides}" if besides else "No factor differs besides.\n"
    if uneven:
        told += f"\n{UNEVEN[0].upper()}{UNEVEN[1:]}:\n\n{uneven}"
    return f"{head}{told}{pairing(records)}{changed}"


def swapped(records: Iterable[Record]) -> str:
    """Markdown: by norm and model, where layers are other than the settings say. "" where all are as asked."""
    notes: dict[str, None] = {}  # each once, in the order of the records
    for record in records:
        norm, model = (value_at(record.identity, key) for key in ("norm.name", "model.name"))
        notes |= dict.fromkeys(f"{norm} in {model}: {change}" for change in changes(record.norm_swap))
    if not notes:
        return ""
    listed = "".join(f"- {short(note)}\n" for note in notes)
    kept = any("act=False" in note for note in notes)
    return (
        "\nWhat the swap of norms changed, whatever the settings say:\n\n" + listed + (KEPT if kept else "")
    )


def pairing(records: Sequence[Record]) -> str:
    """Markdown: whether runs of one seed on one model, data and batch started alike, by the hashes in their records.

    "" where no two runs of different cells have a seed in common.
    """
    groups: dict[str, dict[str, str]] = {}  # a start of each cell
    for record in records:
        start = record.provenance.get("start")
        if start is not None:
            known = {key: record.identity.get(key) for key in ("model", "data", "global_batch", "seed")}
            cells = groups.setdefault(json.dumps(known, sort_keys=True), {})
            cells[digest(record.identity, 64)] = json.dumps(start, sort_keys=True)
    starts = [list(cells.values()) for cells in groups.values() if len(cells) > 1]
    if not starts:
        return ""
    told, apart = sum(map(len, starts)), sum(len(set(hashes)) > 1 for hashes in starts)
    if apart:
        return (
            f"\nNot paired: of {len(starts)} groups of runs with one seed, model, data and batch, {apart} did not "
            "start from the same weights, or saw their images in different orders (provenance.start differs).\n"
        )
    return (
        "\nPaired: runs of one seed, model, data and batch started from the same convolutions, whatever their norm, "
        f"and saw their images in the same order (the hashes of {told} records agree).\n"
    )
