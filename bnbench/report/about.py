"""One line on what was measured and where: what no number on the page may be read without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bnbench.records import Record, value_at
from bnbench.report.numbers import count

VALIDATED = {"test": "validated on the test images", "holdout": "validated on training images held out"}
MOST_COMMITS = 2


def about(records: Sequence[Record]) -> str:
    """`5 epochs on 10,000 images, 64 a step; 2 CPU ranks (AMD EPYC, gloo); ...; 2026-11-26, commit 8e1c8a8`.

    What the records do not state, or not alike, is left out.
    """
    known = [record.identity | {"is": record.provenance} for record in records]

    def same(key: str, kind: type) -> Any:
        first = value_at(known[0], key) if known else None
        alike = isinstance(first, kind) and all(value_at(values, key) == first for values in known)
        return first if alike else None

    days = _ends(str(v)[:10] for values in known if (v := value_at(values, "is.written")) is not None)
    commits = sorted({str(v)[:7] for values in known if (v := value_at(values, "is.git.commit")) is not None})
    parts = [_training(same), _place(same), VALIDATED.get(str(same("is.data.validated_on", str)), "")]
    if len(commits) <= MOST_COMMITS and commits:
        days = f"{days}, " if days else ""
        days += f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"
    return "; ".join(part for part in (*parts, days) if part)


def _training(same: Callable[[str, Any], Any]) -> str:
    epochs, images = same("recipe.epochs", int), same("is.data.train_images", int)
    parts = [count(epochs, "epoch")] if epochs else []
    if images:
        parts.append(f"{'on ' if epochs else ''}{count(images, 'training image')}")
    step = same("global_batch", int)
    return " ".join(parts) + (f"{', ' if parts else ''}{step:,} a step" if step else "")


def _place(same: Callable[[str, Any], Any]) -> str:
    ranks, kind = same("world_size", int), same("is.device.type", str)
    if not ranks or not kind:
        return ""
    named = same("is.device.name", str) or same("is.host.cpu", str)
    backend = same("is.world.backend", str) if ranks > 1 else None
    inside = ", ".join(part for part in (named, backend) if part)
    device = "CPU rank" if kind == "cpu" else "GPU" if kind == "cuda" else f"{kind} device"
    return count(ranks, device) + (f" ({inside})" if inside else "")


def _ends(days: Iterable[str]) -> str:
    found = sorted(set(days))
    return "" if not found else found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
