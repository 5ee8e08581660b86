"""Figures of results that were kept before a result had any: worked out from the numbers that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .figures import Figure


def figures(theme: str, content: dict[str, Any]) -> list[Figure]:
    """Of a result of this theme. ValueError where it does not have the numbers."""
    if theme not in _BY_THEME:
        raise ValueError(f"a result of {theme} of an older version, without figures")
    try:
        return list(_BY_THEME[theme](content))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"a result of {theme} of another version: {error!r}") from None


def _step(content: dict[str, Any]) -> Iterator[Figure]:
    targets = {"32": 1.07, "2": 1.2}
    for batch, rows in content["by_batch"].items():
        for name in ("bnbench", "plain"):
            row, what = rows[name], "plain Lightning" if name == "plain" else name
            low, high = row["ratio_quartiles"]  # with 20 rounds the 96% interval of the median too
            target = targets.get(batch) if name == "bnbench" else None
            yield Figure(f"{batch} images: {what} / bare", row["ratio_median"], low, high, target=target)
        share = rows["bnbench"]["health"]["share"]
        yield Figure(f"{batch} images: health signals, of a step", share, target=0.02)


def _norms(content: dict[str, Any]) -> Iterator[Figure]:
    for name, row in content["rows"].items():
        if row.get("ratio_target") is not None:
            low, high = row["ratio_interval"]
            what = f"{name} / {row['reference']}"
            yield Figure(what, row["ratio"], low, high, target=row["ratio_target"])
        if row.get("saved_target") is not None:
            saved = row["saved_inputs"]
            yield Figure(f"{name}: saved", saved, saved, saved, "inputs", row["saved_target"])
    for name, row in ((content["ranks"] or {}).get("rows") or {}).items():
        if row["kind"] != "reference":
            what = f"{name} over {content['ranks']['size']} ranks / each rank by itself"
            yield Figure(what, row["ratio"], *row["ratio_interval"])


def _sweep(content: dict[str, Any]) -> Iterator[Figure]:
    for name, target in (("pool", 0.5), ("fresh_world", None)):
        extra = content[name]["extra_seconds"]
        what = f"{name}: a further run beside its training"
        yield Figure(what, extra["median"], extra["least"], extra["most"], "s", target)


def _measuring(content: dict[str, Any]) -> Iterator[Figure]:
    for size, found in content["by_size"].items():
        share = found["share"]
        yield Figure(f"{size}: share of training", share["median"], share["low"], share["high"], target=0.02)


_BY_THEME: dict[str, Callable[[dict[str, Any]], Iterator[Figure]]] = {
    "step": _step,
    "norms": _norms,
    "sweep": _sweep,
    "measuring": _measuring,
}
