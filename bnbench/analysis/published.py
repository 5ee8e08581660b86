"""Published numbers beside ours: reference tables kept as data, each with its source and how it is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbench.analysis.answer import Panel, Published
from bnbench.records import flatten

if TYPE_CHECKING:
    import polars as pl

TABLES = Path(__file__).with_name("published.json")


@cache
def tables() -> dict[str, Any]:
    """`errors`: validation errors in percent, each with the identity keys (`where`) that a cell must have.

    `sources`, by name: cite, url, evidence, the identity keys of its protocol, and the rest of it in words.
    """
    found: dict[str, Any] = json.loads(TABLES.read_text())
    return found


def beside(panels: Iterable[Panel], runs: pl.DataFrame) -> list[Published]:
    """A row for each published number whose model, data, norm and NBS one of the cells has.

    `runs`: `Collected.runs`, for the identities of the cells. A cell on a part of its data, or validated on training
    images held out, has none.
    """
    columns = runs.select("cell", "identity").unique().iter_rows()
    identities = {cell: flatten(json.loads(text)) for cell, text in columns}
    found = []
    for cell in (cell for panel in panels for cell in panel.cells):
        flat = identities[cell.key]
        if any(flat.get(f"data.{key}") is not None for key in ("max_train", "max_test", "val_images")):
            continue
        for row in tables()["errors"]:
            if all(flat.get(key) == value for key, value in row["where"].items()):
                found.append(_row(row, flat, cell.error))
    return found


def _row(row: Mapping[str, Any], flat: Mapping[str, Any], ours: Any) -> Published:
    source, where = tables()["sources"][row["source"]], row["where"]
    words = [f"{key.removesuffix('.name').rpartition('.')[2]} {value}" for key, value in where.items()]
    apart = [
        f"{key.rpartition('.')[2]} {flat.get(key)}, there {value}"
        for key, value in source["protocol"].items()
        if flat.get(key) != value
    ]
    return Published(
        source=source["cite"],
        url=source["url"],
        evidence=source["evidence"],
        what=", ".join(words),
        value=row["error"],
        ours=ours,
        matches=", ".join(key.removesuffix(".name") for key in where),
        differs="; ".join([*apart, f"there: {source['words']}"]),
    )
