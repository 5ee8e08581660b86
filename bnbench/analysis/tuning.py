"""The best learning rate of each cell of a grid: how many were tried, and whether the grid was wide enough."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnbench.records import FINISHED, flatten

if TYPE_CHECKING:
    import polars as pl

LR = "recipe.lr"
Trials = Mapping[float, Mapping[int, float | None]]  # by learning rate, then by seed; None: no number


@dataclass(frozen=True)
class Choice:
    """`lost`: rates at which a seed has no number, such as one that diverged; they cannot be chosen."""

    rate: float
    mean: float | None
    tried: tuple[float, ...]
    lost: int

    @property
    def edge(self) -> str | None:
        """Where the optimum lies at the end of the grid, beyond which nobody looked."""
        if len(self.tried) < 2 or self.rate not in (self.tried[0], self.tried[-1]):
            return None
        return "lower" if self.rate == self.tried[0] else "upper"

    def __str__(self) -> str:
        if len(self.tried) == 1:
            return f"LR {self.rate:g}, the only one tried: not tuned"
        words = f"LR {self.rate:g}, the best of {len(self.tried)}"
        if self.edge:
            words += f", on the {self.edge} edge of the grid: widen it"
        if self.lost:
            words += f"; at {self.lost} of them a seed has no number"
        return words


def best_rate(trials: Trials, better: str = "lower") -> Choice:
    """The rate of the best mean over seeds; of equal means the smaller rate.

    Over the seeds that every rate was tried with (over all of them where there is none), so that a rate is not
    chosen for its seeds. Only rates at which each of these has a number; where there are none, those with the most.
    """
    tried_with = [set(by_seed) for by_seed in trials.values() if by_seed]
    seeds = set.intersection(*tried_with) if tried_with else set()
    seeds = seeds or set().union(*tried_with)
    numbers = {
        rate: [v for seed in sorted(seeds) if (v := trials[rate].get(seed)) is not None]
        for rate in sorted(trials)
    }
    most = max(map(len, numbers.values()))
    means = {rate: sum(found) / most for rate, found in numbers.items() if len(found) == most and most}
    lost = sum(len(found) < len(seeds) for found in numbers.values())
    tried = tuple(numbers)
    if not means:
        return Choice(tried[0], None, tried, lost)
    best = min(means, key=lambda rate: (means[rate] if better == "lower" else -means[rate], rate))
    return Choice(best, means[best], tried, lost)


@dataclass(frozen=True)
class TunedCell:
    """A cell of a sweep over learning rates; `nbs` None for a norm without one."""

    model: str
    norm: str
    nbs: int | None
    settings: dict[str, str]  # what else sets it apart
    choice: Choice


def tuned(runs: pl.DataFrame) -> list[TunedCell]:
    """Each cell of `Collected.runs` that tried several learning rates, by mean validation error in percent."""
    cells: dict[str, tuple[dict[str, Any], dict[float, dict[int, float | None]]]] = {}
    identities = {text: flatten(json.loads(text)) for text in runs["identity"].unique()}
    columns = runs.select("identity", "seed", "status", "val_error").iter_rows()
    for identity, seed, status, error in columns:
        if status not in FINISHED:
            continue  # cut off or out of memory: it says nothing of its rate
        flat = dict(identities[identity])
        rate = flat.pop(LR, None)
        if not isinstance(rate, int | float) or flat.get("recipe.schedule.name") == "range":
            continue
        _, trials = cells.setdefault(json.dumps(flat, sort_keys=True), (flat, {}))
        trials.setdefault(rate, {})[seed] = error if status == "completed" else None
    several = [(flat, trials) for flat, trials in cells.values() if len(trials) > 1]
    keys = telling(flat for flat, _ in several)
    return [
        TunedCell(
            model=flat["model.name"],
            norm=flat["norm.name"],
            nbs=flat.get("nbs"),
            settings={key: str(flat[key]) for key in keys if key in flat},
            choice=best_rate(trials),
        )
        for flat, trials in several
    ]


def unequal(cells: Iterable[TunedCell]) -> bool:
    """Whether cells tried different learning rates: then their best are not to be compared."""
    return len({cell.choice.tried for cell in cells}) > 1


def telling(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys, of flat identities, in which cells differ by more than their norm says."""
    values: dict[str, dict[str, set[str]]] = {}
    for flat in cells:
        for key, value in flat.items():
            owner = flat["norm.name"] if key.startswith("norm.") else ""
            values.setdefault(key, {}).setdefault(owner, set()).add(json.dumps(value))
    shown = ("model.name", "norm.name", "nbs")
    return sorted(
        key
        for key, owners in values.items()
        if key not in shown and any(len(found) > 1 for found in owners.values())
    )
