"""What the seeds of each cell say together, and what sets the cells apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from bnbench import catalog
from bnbench.records import Status, flatten

if TYPE_CHECKING:
    import polars as pl

LEVEL = 0.95
STATUSES: tuple[str, ...] = get_args(Status)
MISSED: tuple[str, ...] = tuple(status for status in STATUSES if status != "completed")

# Identity keys with a column of their own, and the name of that column.
_COLUMNS = {"data.name": "data", "world_size": "world_size", "global_batch": "global_batch"}
_COLUMNS |= {"per_device_batch": "per_device_batch", "precision": "precision"}
_BATCHES = ("world_size", "global_batch", "per_device_batch")
_FIXED = (
    "cell",
    "model",
    "norm",
    "family",
    "nbs",
    *_COLUMNS.values(),
    "runs",
    "seeds",
    "mean",
    "low",
    "high",
)
_FIXED += ("sd", "images_per_s", *STATUSES)
# Keys that every table and figure shows.
_ALWAYS = ("model.name", "norm.name", "nbs")


def cells(runs: pl.DataFrame) -> pl.DataFrame:
    """One row per cell of `Collected.runs`: the mean over its seeds with its 95% t interval.

    Columns: cell, model, norm, family, nbs, data, world_size, per_device_batch, global_batch, precision,
    runs, seeds (completed runs with an error), mean, low, high and sd of the validation error in percent,
    images_per_s (median of the completed runs), one count for each status, and the `factors` that have
    no column yet, as text. Only completed runs enter mean, sd and interval; with one seed there is no
    interval (null), and with none no mean. Sorted by model, data, norm, nbs, then the factors.
    """
    import polars as pl
    from scipy.special import stdtrit  # Student's quantile, without scipy.stats' second of imports

    done = pl.col("status") == "completed"
    error = pl.col("val_error").filter(done)
    kept = ["cell", "model", "norm", "family", "nbs", *_COLUMNS.values()]
    table = runs.group_by(kept, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("runs"),
        error.count().cast(pl.Int64).alias("seeds"),
        error.mean().alias("mean"),
        error.std().alias("sd"),
        pl.col("images_per_s").filter(done).median(),
        *[(pl.col("status") == status).sum().cast(pl.Int64).alias(status) for status in STATUSES],
    )
    quantile = {n: float(stdtrit(n - 1, (1 + LEVEL) / 2)) for n in table["seeds"].unique() if n > 1}
    quantiles = pl.Series([quantile.get(n) for n in table["seeds"]], dtype=pl.Float64)
    half = quantiles * table["sd"] / table["seeds"].sqrt()
    table = table.with_columns(low=table["mean"] - half, high=table["mean"] + half)
    return _sorted(_with_factors(table.select(_FIXED), runs))


def factors(table: pl.DataFrame) -> list[str]:
    """The columns of `cells`, beyond model, norm and nbs, in which its rows differ."""
    own = [name for name in _COLUMNS.values() if table[name].n_unique() > 1]
    # Of world size, global and per-device batch, each follows from the other two: where two vary, the
    # first names the row, and the third is among the `shared`.
    batches = [name for name in own if name in _BATCHES]
    left_out = batches[-1:] if len(batches) > 1 else []
    return [name for name in own if name not in left_out] + [
        key for key in table.columns if key not in _FIXED
    ]


def shared(runs: pl.DataFrame) -> dict[str, str]:
    """The settings (identity keys, dotted) that all cells have in common; a norm's, among its cells."""
    flat = _identities(runs)
    common: dict[str, str] = {}
    for key in _keys(flat.values()):
        if key in _ALWAYS:
            continue
        if not key.startswith("norm."):
            values = {_word(identity.get(key)) for identity in flat.values()}
            if len(values) == 1:
                common[key] = values.pop()
            continue
        for norm, values in _by(flat.values(), key, "norm.name").items():
            if len(values) == 1:
                common[f"{norm}: {key}"] = next(iter(values))
    return common


def _with_factors(table: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    flat = _identities(runs)
    extra = [key for key in _keys(flat.values()) if key not in (*_ALWAYS, *_COLUMNS) and _varies(flat, key)]
    rows = [flat[cell] for cell in table["cell"]]
    return table.with_columns(
        pl.Series(key, [_word(row[key]) if key in row else None for row in rows], dtype=pl.String)
        for key in extra
    )


def _varies(flat: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    """Whether cells differ in a key by more than their model, kind of norm, or data says already."""
    owner = key.partition(".")[0]
    if owner in ("model", "norm", "data"):
        return any(len(values) > 1 for values in _by(flat.values(), key, f"{owner}.name").values())
    return len({_word(identity.get(key)) for identity in flat.values()}) > 1


def _by(flat: Iterable[Mapping[str, Any]], key: str, owner: str) -> dict[Any, set[str]]:
    """The values of a key for each value of its owner, where any of that owner's has the key: null for one without."""
    owned: dict[Any, list[Mapping[str, Any]]] = {}
    for identity in flat:
        owned.setdefault(identity.get(owner), []).append(identity)
    return {
        name: {_word(identity.get(key)) for identity in own}
        for name, own in owned.items()
        if any(key in identity for identity in own)
    }


def _identities(runs: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The flat identity of each cell, by the cell's name."""
    return {cell: flatten(json.loads(text)) for cell, text in runs.select("cell", "identity").unique().rows()}


def _keys(flat: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({key for identity in flat for key in identity})


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sorted(table: pl.DataFrame) -> pl.DataFrame:
    extra = factors(table)
    rows = list(enumerate(table.iter_rows(named=True)))

    def place(numbered: tuple[int, dict[str, Any]]) -> list[tuple[int, float, str]]:
        row = numbered[1]
        named = [_rank(row["model"], list(catalog.MODELS)), _rank(row["data"], list(catalog.DATASETS))]
        named.append(_rank(row["norm"], list(catalog.NORMS)))
        return named + [_natural(row[key]) for key in ("nbs", *extra, "cell")]

    return table[[index for index, _ in sorted(rows, key=place)]]


def _rank(value: str, order: Sequence[str]) -> tuple[int, float, str]:
    return (0, order.index(value), "") if value in order else (1, 0, value)


def _natural(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words, then nothing."""
    if value is None:
        return (2, 0, "")
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0, str(value))
