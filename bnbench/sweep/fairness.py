"""What differs between the planned cells of a sweep besides what it sweeps, told before it starts. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from bnbench.config import RunConfig
from bnbench.fairness import Fairness, fairness
from bnbench.records import cell_of, flatten

MOST_LINES = 8
# Of the whole training set, by its publishers (digits: 1,297 images x 8 copies).
_IMAGES = {
    "digits": 10_376,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "fashion_mnist": 60_000,
    "imagenet": 1_281_167,
}


def planned(runs: Iterable[RunConfig]) -> Fairness:
    """The fairness of a plan; steps are compared where the data's size is known before it is read."""
    return fairness((flatten(cell_of(run.identity())), _images(run)) for run in runs)


def told(runs: Iterable[RunConfig]) -> list[str]:
    """The lines for a sweep's start; none where there is one cell."""
    found = planned(runs)
    if not found.swept and not found.besides:
        return []
    lines = found.lines()
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"  and {more} more; the report lists all"]


def _images(run: RunConfig) -> int | None:
    whole = _IMAGES.get(run.data.name, run.data.train_images)
    if whole is None:
        return None
    chosen = whole if run.data.max_train is None else min(whole, run.data.max_train)
    return chosen - (run.data.val_images or 0)
