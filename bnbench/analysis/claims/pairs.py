"""Which runs of a claim stand against which: selected, tuned where asked, paired by seed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bnbench.analysis.tuning import LR, best_rate
from bnbench.records import FINISHED

from .measures import MEASURES, Run
from .table import DEVICE, SMALLEST, WORLD, Comparison, Side

Key = tuple[tuple[str, str], ...]


@dataclass
class Instance:
    """One comparison in one setting: `context` is what both sides agree in."""

    context: Key
    own: tuple[Key, Key]  # what sets each side apart, beyond what its label says
    pairs: list[tuple[float, float]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # runs without a number, by why
    diverged: list[int] = field(default_factory=lambda: [0, 0])  # of those, on either side
    runs: list[Run] = field(default_factory=list)


def select(side: Side, runs: Iterable[Run], varies: Sequence[str]) -> list[Run]:
    """The runs of one side. SMALLEST and LARGEST are meant among those that its other keys select, and that agree in
    all that `varies` does not name."""
    nbs = side.where.get("nbs")
    chosen = [run for run in runs if all(run.flat.get(k) == v for k, v in side.where.items() if k != "nbs")]
    if nbs is None:
        return chosen
    chosen = [run for run in chosen if run.flat.get("nbs") is not None]
    if nbs in (DEVICE, WORLD):
        return [run for run in chosen if run.flat["nbs"] == run.flat["per_device_batch"] * _ranks(run, nbs)]
    by_context: dict[Key, list[Run]] = {}
    for run in chosen:
        by_context.setdefault(_key(run, (*varies, "nbs"), inside=False), []).append(run)
    most = min if nbs == SMALLEST else max
    return [
        run
        for alike in by_context.values()
        for run in alike
        if run.flat["nbs"] == most(other.flat["nbs"] for other in alike)
    ]


def _ranks(run: Run, nbs: str) -> int:
    return run.flat["world_size"] if nbs == WORLD else 1


def instances(comparison: Comparison, left: Sequence[Run], right: Sequence[Run]) -> list[Instance]:
    """Pairs that agree in all that `comparison.varies` does not name, and in their seed."""
    varies = comparison.varies + ((LR,) if comparison.tuned else ())
    measures = MEASURES[comparison.left.measure], MEASURES[comparison.right.measure]
    rights: dict[tuple[Key, int], list[Run]] = {}
    for run in right:
        rights.setdefault((_key(run, varies, inside=False), run.seed), []).append(run)
    found: dict[tuple[Key, Key, Key], Instance] = {}
    for one in left:
        context = _key(one, varies, inside=False)
        for other in rights.get((context, one.seed), ()):
            if one is other and comparison.left.measure == comparison.right.measure:
                continue  # the smallest NBS is the largest
            own = _key(one, varies, inside=True), _key(other, varies, inside=True)
            instance = found.setdefault((context, *own), Instance(context, own))
            instance.runs += [one, other]
            values = measures[0].of(one), measures[1].of(other)
            if values[0] is not None and values[1] is not None:
                instance.pairs.append((values[0], values[1]))
                continue
            without = [run for run, value in zip((one, other), values, strict=True) if value is None]
            for run in {id(run): run for run in without}.values():  # one network may be both sides
                status = run.record.status
                instance.left_out["without the number" if status == "completed" else status] += 1
            for side, run in enumerate((one, other)):
                instance.diverged[side] += run in without and run.record.status == "diverged"
    return list(found.values())


def _key(run: Run, varies: Sequence[str], inside: bool) -> Key:
    """The part of an identity that `varies` names, or all but it."""

    def named(key: str) -> bool:
        # A norm's kind brings settings of its own; where it is placed is not one of them.
        return key in varies or (key != "norm.placement" and key.partition(".")[0] in varies)

    return tuple(sorted((k, json.dumps(v)) for k, v in run.flat.items() if named(k) == inside))


def depth(run: Run) -> int:
    """Layers of a run's network, by its settings or the number in its name; 0 where neither tells."""
    given = run.flat.get("model.depth")
    if isinstance(given, int):
        return given
    numbers = re.findall(r"\d+", str(run.flat.get("model.name")))
    return int(numbers[-1]) if numbers else 0


def settings(found: Sequence[Instance]) -> list[str]:
    """What sets the instances of one comparison apart, in words; one alone needs none."""
    flat = [dict(instance.context) for instance in found]
    sides = [
        {f"{k}": v for own in instance.own for k, v in own if k not in ("norm.name", "nbs", LR)}
        for instance in found
    ]
    merged = [{**own, **context} for own, context in zip(sides, flat, strict=True)]
    keys = sorted({key for known in merged for key in known})
    telling = [key for key in keys if len({known.get(key) for known in merged}) > 1]
    sizes = [{json.loads(v) for own in i.own for k, v in own if k == "nbs"} - {None} for i in found]
    words = []
    for known, nbs in zip(merged, sizes, strict=True):
        parts = [f"{_short(key)} {_plain(known[key])}".strip() for key in telling if key in known]
        if len({tuple(sorted(size)) for size in sizes}) > 1:
            parts.append(f"NBS {'/'.join(map(str, sorted(nbs)))}")
        words.append(", ".join(parts))
    return words


def _short(key: str) -> str:
    if key.endswith(".name"):
        return ""  # a name says whose it is
    return key.removeprefix("recipe.").removeprefix("model.").replace(".", " ")


def _plain(text: str) -> str:
    value = json.loads(text)
    return value if isinstance(value, str) else text


def tune(
    left: Sequence[Run], right: Sequence[Run], comparison: Comparison
) -> tuple[list[Run], list[Run], dict[tuple[Key, Key], list[str]]]:
    """Each cell at its best learning rate of the grid that both sides have, by the mean over seeds.

    Third: what is to be said about the choice, by context and cell.
    """
    sides = (comparison.left, comparison.right)
    grids = [_by_cell(runs, (*comparison.varies, LR)) for runs in (left, right)]
    kept: list[list[Run]] = [[], []]
    notes: dict[tuple[Key, Key], list[str]] = {}
    for number, side in enumerate(sides):
        measure = MEASURES[side.measure].of
        for (context, cell), runs in grids[number].items():
            rates = {run.flat[LR] for run in runs}
            against = [found for (place, _), found in grids[1 - number].items() if place == context]
            shared = rates.intersection(*({run.flat[LR] for run in found} for found in against))
            if not shared:
                continue
            trials: dict[float, dict[int, float | None]] = {rate: {} for rate in shared}
            for run in runs:
                # One that was cut off or ran out of memory says nothing of its rate; one that diverged rules it out.
                if run.flat[LR] in shared and run.record.status in FINISHED:
                    done = run.record.status == "completed"
                    trials[run.flat[LR]][run.seed] = measure(run) if done else None
            choice = best_rate(trials, comparison.better)
            said = [f"{side.label}: {choice}"]
            if shared < rates:
                apart = ", ".join(f"{rate:g}" for rate in sorted(rates - shared))
                said.append(f"{side.label}: LR {apart} left out, which the other side did not try")
            notes[context, cell] = said
            kept[number] += [run for run in runs if run.flat[LR] == choice.rate]
    return kept[0], kept[1], notes


def _by_cell(runs: Iterable[Run], varies: Sequence[str]) -> dict[tuple[Key, Key], list[Run]]:
    cells: dict[tuple[Key, Key], list[Run]] = {}
    for run in runs:
        if not isinstance(run.flat.get(LR), int | float):
            continue
        own = tuple(pair for pair in _key(run, varies, inside=True) if pair[0] != LR)
        cells.setdefault((_key(run, varies, inside=False), own), []).append(run)
    return cells
