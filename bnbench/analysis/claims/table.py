"""The claims as data: which cells are compared, on what, and which direction supports the claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# In place of an NBS: the smallest or largest among the runs that the rest of a side selects, a device's
# batch, and the whole global batch (SyncBN).
SMALLEST, LARGEST, DEVICE, WORLD = "smallest", "largest", "device", "world"
RELATIVE = (SMALLEST, LARGEST, DEVICE, WORLD)
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Side:
    """Runs by their flat identity (`norm.name`, `nbs`, `model.dropout`), and what is measured on them."""

    label: str
    where: Mapping[str, Any]
    measure: str  # of measures.MEASURES


@dataclass(frozen=True)
class Comparison:
    """Left against right, over runs that agree in everything but what `varies` names (keys, or their prefixes).

    `better`: the direction of left's measure that supports the claim. `tuned`: each side first takes its best
    learning rate of the grid that both have; by `measure`, while `reported` is what is then compared, where the runs
    have it. `decides`: where this comparison has a verdict; elsewhere its
    interval is shown as context, outside Holm's family. "deepest" is the deepest network among the runs.
    """

    left: Side
    right: Side
    better: Better
    varies: tuple[str, ...]
    tuned: bool = False
    reported: str | None = None
    decides: Literal["everywhere", "deepest", "nowhere"] = "everywhere"


@dataclass(frozen=True)
class Claim:
    comparisons: tuple[Comparison, ...]
    lost: str  # how a run counts that diverged or never got there


_BN, _NONE = {"norm.name": "bn"}, {"norm.name": "none"}
_NORM = ("norm", "nbs")


def _against_none(measure: str, better: Better, **options: Any) -> Comparison:
    return Comparison(Side("BN", _BN, measure), Side("none", _NONE, measure), better, _NORM, **options)


def _nbs(left: str, right: str, measure: str, better: Better, **options: Any) -> Comparison:
    one, other = (Side(f"BN, {nbs} NBS", _BN | {"nbs": nbs}, measure) for nbs in (left, right))
    return Comparison(one, other, better, ("nbs",), **options)


def _answer(label: str, where: Mapping[str, Any]) -> Comparison:
    """An answer to small batches against BN at its smallest NBS."""
    small = Side("BN, smallest NBS", _BN | {"nbs": SMALLEST}, "attempt_error")
    return Comparison(Side(label, where, "attempt_error"), small, "lower", _NORM)


def _statistics(left: str, right: str, better: Better, **options: Any) -> Comparison:
    """One network under two kinds of statistics in evaluation, at its smallest NBS."""
    small = _BN | {"nbs": SMALLEST}
    one, other = (Side(f"BN, {name} statistics", small, f"val_error_{name}") for name in (left, right))
    return Comparison(one, other, better, (), **options)


_EXCLUDED = (
    "Runs that diverged are left out and counted; where more of them are on one side than on the other there is no "
    "verdict, since those that are left are a choice."
)
_TEST = "attempt_test_error"
_CHANCE = "A run that diverged counts as guessing among the classes."

TABLE: dict[str, Claim] = {
    "convergence": Claim(
        (_against_none("steps_to_target", "lower", tuned=True),),
        "A run that never reached the target, or diverged, counts with all the steps of its budget: what is "
        "compared is the steps until the target or the end, whichever comes first.",
    ),
    "learning_rate": Claim(
        (_against_none("largest_stable_lr", "higher"),),
        "A range test that ends in divergence is complete. One without a stable rate is left out and counted: either "
        "no window was stable, or training gained nothing.",
    ),
    "accuracy": Claim((_against_none("attempt_error", "lower", tuned=True, reported=_TEST),), _CHANCE),
    "covariate_shift": Claim(
        (
            _against_none("input_drift", "lower"),
            _against_none("gradient_change", "lower"),
            # In the loss's own units, and small where training has not begun to learn.
            _against_none("loss_range", "lower", decides="nowhere"),
        ),
        _EXCLUDED,
    ),
    "regularization": Claim(
        (
            _nbs(SMALLEST, LARGEST, "gap", "lower"),
            _nbs(SMALLEST, LARGEST, "val_error", "lower", decides="nowhere"),
            _nbs(SMALLEST, LARGEST, "train_eval_error", "lower", decides="nowhere"),
        ),
        _EXCLUDED,
    ),
    "depth": Claim((_against_none("attempt_error", "lower", tuned=True, decides="deepest"),), _CHANCE),
    "small_batch": Claim(
        (
            _answer("BN, a device's batch", _BN | {"nbs": DEVICE}),
            _answer("SyncBN", _BN | {"nbs": WORLD}),
            _answer("BRN, smallest NBS", {"norm.name": "brn", "nbs": SMALLEST}),
            _answer("VBN", {"norm.name": "vbn"}),
            _answer("GN", {"norm.name": "gn"}),
        ),
        _CHANCE,
    ),
    "placement": Claim(
        (
            Comparison(
                Side("BN before", _BN | {"norm.placement": "before"}, "attempt_error"),
                Side("BN after", _BN | {"norm.placement": "after"}, "attempt_error"),
                "lower",
                ("norm.placement",),
                tuned=True,
                reported=_TEST,
            ),
        ),
        _CHANCE,
    ),
    "inference": Claim(
        (
            _statistics("running", "batch", "higher"),
            _nbs(SMALLEST, LARGEST, "inference_gap", "higher"),
            _statistics("precise", "running", "lower", decides="nowhere"),
        ),
        _EXCLUDED,
    ),
}
