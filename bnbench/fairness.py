"""Which factors differ between the cells of a sweep: swept on purpose, and besides. No torch.

Both halves read it: a sweep before it starts, from what is planned, and a report, from identities in records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A choice brings settings of its own; what sets its cells apart is the choice.
CHOICES = ("model.name", "norm.name", "data.name", "recipe.name", "recipe.schedule.name")
# What follows from a factor: where it is swept, these differ with it.
FOLLOWS = {
    "world_size": ("per_device_batch", "nbs"),
    "global_batch": ("per_device_batch", "nbs", "steps", "peak LR"),
    "recipe.accumulate": ("per_device_batch", "nbs"),
    "data.max_train": ("steps",),
    "recipe.epochs": ("steps",),
    "recipe.lr": ("peak LR",),
    "recipe.lr_rule": ("peak LR", "recipe.base_batch"),
    "recipe.base_batch": ("peak LR",),
}
# What an identity without the key means, where that is a setting too: layers start as their model builds them.
UNSAID = {"norm.init": "none"}
UNEVEN = "swept over other values with one choice than with another"
SMALLER_THAN_NAMES = 3  # of several groups, the largest is called "others" from this many on

Flat = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A factor with its values; each with who has it, by the choice that tells them apart."""

    key: str
    values: tuple[tuple[str, tuple[str, ...]], ...]

    def __str__(self) -> str:
        return f"{self.key}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in self.values)


@dataclass(frozen=True)
class Fairness:
    """`uneven`: of the swept, those that took other values with one choice than with another."""

    swept: tuple[str, ...]
    besides: tuple[Difference, ...]
    uneven: tuple[Difference, ...] = ()

    def lines(self) -> list[str]:
        """One line where nothing differs besides, else one for each factor that does; and the uneven ones."""
        swept = ", ".join(map(called, self.swept)) or "the seed"
        lines = [f"fairness: no factor differs besides the swept {swept}"]
        if self.besides:
            lines = [f"fairness: besides the swept {swept} these differ", *(f"  {d}" for d in self.besides)]
        if self.uneven:
            lines += [f"fairness: {UNEVEN}", *(f"  {d}" for d in self.uneven)]
        return lines


def called(key: str) -> str:
    """A factor in the words of the command line."""
    names = {"world_size": "ranks", "recipe.name": "optim", "nbs": "NBS"}
    return names.get(key, key.removesuffix(".name") if key in CHOICES else key.removeprefix("recipe."))


def fairness(cells: Iterable[tuple[Flat, int | None]]) -> Fairness:
    """Of cells as flat identities without their seed, each with its number of training images, if known.

    A factor is swept where two cells differ in it and in nothing but what follows from it (and choices of a
    model, norm, data set, optimizer or schedule always are); it differs besides where none do. It is uneven
    where one choice was swept over other values of it than another. A key that only some cells have is compared among
    those.
    """
    facts = list({json.dumps(fact, sort_keys=True): fact for fact in map(_facts, cells)}.values())
    keys = sorted({key for fact in facts for key in fact})
    varying = [key for key in keys if len(_values(facts, key)) > 1]
    swept = [key for key in varying if key in CHOICES or _alone(facts, key, varying)]
    besides = [_difference(facts, key, swept) for key in varying if key not in swept]
    uneven = [_difference(facts, key, swept) for key in swept if _uneven(facts, key, swept)]
    return Fairness(tuple(swept), tuple(besides), tuple(uneven))


def _facts(cell: tuple[Flat, int | None]) -> dict[str, Any]:
    """A flat identity with what follows from it and matters: optimizer steps, and the LR by its rule."""
    flat, images = dict(cell[0]), cell[1]
    if "norm.name" in flat:
        flat = UNSAID | flat
    batch, epochs = flat.get("global_batch"), flat.get("recipe.epochs")
    if images and batch and epochs:
        flat["steps"] = epochs * (images // batch)
    rule, base = flat.get("recipe.lr_rule", "none"), flat.get("recipe.base_batch")
    if rule in ("linear", "sqrt") and base and batch:
        flat["peak LR"] = flat["recipe.lr"] * (batch / base) ** (1.0 if rule == "linear" else 0.5)
    # No NBS is no value of it; a label says again what the data's name does.
    gone = {"data.label", *(["nbs"] if flat.get("nbs") is None else [])}
    return {key: value for key, value in flat.items() if key not in gone}


def _values(facts: Iterable[Flat], key: str) -> set[str]:
    return {json.dumps(fact[key]) for fact in facts if key in fact}


def _alone(facts: Sequence[Flat], key: str, varying: Sequence[str]) -> bool:
    """Whether two cells differ in this factor, and else only in what follows from it."""
    rest = [other for other in varying if other != key and other not in FOLLOWS.get(key, ())]
    seen: dict[str, str] = {}
    for fact in facts:
        if key in fact:
            value = json.dumps(fact[key])
            place = json.dumps([fact.get(other, "absent") for other in rest])
            if seen.setdefault(place, value) != value:
                return True
    return False


def _uneven(facts: Sequence[Flat], key: str, swept: Sequence[str]) -> bool:
    """Whether a swept factor took other values with one choice than with another."""
    if key in CHOICES:
        return False
    having = [fact for fact in facts if key in fact]
    return any(
        len({frozenset(_values([f for f in having if f.get(choice) == value], key)) for value in values}) > 1
        for choice in swept
        if choice in CHOICES and not key.startswith(choice.removesuffix("name"))
        for values in [{fact.get(choice) for fact in having}]
    )


def _difference(facts: Sequence[Flat], key: str, swept: Sequence[str]) -> Difference:
    """The values of a factor, each with who has it: by the swept factor that explains it, if one does."""
    having = [fact for fact in facts if key in fact]
    owner = _owner(having, key, swept)
    groups: dict[str, list[str]] = {}
    for fact in having:
        who = _word(fact.get(owner)) if owner else _word(fact.get("norm.name"))
        prefix = "" if owner in (None, *CHOICES) else f"{called(str(owner))} "
        groups.setdefault(_word(fact[key]), []).append(prefix + who)
    named = {value: tuple(dict.fromkeys(who)) for value, who in groups.items()}
    most = max(named, key=lambda value: len(named[value]))
    if len(named) > 1 and len(named[most]) >= SMALLER_THAN_NAMES:
        named[most] = ("others",)
    ordered = sorted(named.items(), key=lambda item: item[1] == ("others",))
    return Difference(called(key), tuple(ordered))


def _owner(having: Sequence[Flat], key: str, swept: Sequence[str]) -> str | None:
    """The swept factor whose value settles this one's."""
    group = key.partition(".")[0]
    near = [f"{group}.name"] if f"{group}.name" in swept else []
    for name in (*near, *swept):
        values: dict[str, set[str]] = {}
        for fact in having:
            values.setdefault(json.dumps(fact.get(name)), set()).add(json.dumps(fact[key]))
        if all(len(found) == 1 for found in values.values()):
            return name
    return None


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
