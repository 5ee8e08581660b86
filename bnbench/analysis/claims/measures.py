"""What a claim measures on one run, and what a run counts for that has no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bnbench.records import FINISHED, Record, flatten, value_at


@dataclass(frozen=True)
class Run:
    """A record as comparisons see it: what it must agree in to be compared, flat and without its seed; and the seed."""

    record: Record
    flat: Mapping[str, Any]
    seed: int

    @classmethod
    def of(cls, record: Record) -> Run:
        flat = flatten(record.identity)
        measure = record.config.get("measure")
        if isinstance(measure, Mapping) and measure.get(
            "landscape"
        ):  # drift is that since the last measurement
            flat["measure.landscape_every"] = measure.get("landscape_every")
        return cls(record, flat, flat.pop("seed"))

    def number(self, key: str) -> float | None:
        value = self.record.metrics.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True)
class Measure:
    """A number of a record's metrics, or the difference of two (`key` - `minus`).

    `worst`: what a run without it counts for; None: left out. `ratio`: positive, and compared on a log scale.
    """

    name: str
    key: str
    minus: str | None = None
    unit: str = ""
    ratio: bool = False
    worst: Callable[[Run], float | None] | None = None
    any_status: bool = False  # a number counts however the run ended

    def read(self, run: Run) -> float | None:
        """What the record says, however the run ended."""
        value, other = run.number(self.key), 0.0 if self.minus is None else run.number(self.minus)
        return None if value is None or other is None else value - other

    def of(self, run: Run) -> float | None:
        """None where this run cannot be compared."""
        value = None
        if run.record.status == "completed" or self.any_status:
            value = self.read(run)
        # What ran out of memory or was cut off says nothing about training.
        if value is None and self.worst is not None and run.record.status in FINISHED:
            value = self.worst(run)
        return None if value is None or (self.ratio and value <= 0) else value


def budget(run: Run) -> float | None:
    """All the optimizer steps of a run with a target; None where its record does not tell."""
    if run.record.config.get("target_error") is None:
        return None  # it had no target to miss
    images = value_at(run.record.provenance, "data.train_images") or run.flat.get("data.max_train")
    batch, epochs = run.flat.get("global_batch"), run.flat.get("recipe.epochs")
    if not images or not batch or not epochs:
        return None
    return float(epochs * (images // batch))


def chance_error(run: Run) -> float:
    """Percent of errors when guessing among the classes; 100 where the record does not tell how many."""
    classes = value_at(run.record.provenance, "data.classes")
    return 100.0 * (1 - 1 / classes) if classes else 100.0


_POINTS = "points"  # of percent
MEASURES: dict[str, Measure] = {
    "val_error": Measure("validation error %", "final_val_error", unit=_POINTS),
    "attempt_error": Measure("validation error %", "final_val_error", unit=_POINTS, worst=chance_error),
    # Of a run whose learning rate was chosen on held-out images, on images that nothing was chosen on.
    "attempt_test_error": Measure("test error %", "test_error", unit=_POINTS, worst=chance_error),
    "train_eval_error": Measure("training error %", "train_eval_error", unit=_POINTS),
    # Both of the final network, where `final_val_error` may be a median over epochs.
    "gap": Measure("validation - training error", "val_error_running", "train_eval_error", _POINTS),
    "steps_to_target": Measure("steps to target", "steps_to_target", ratio=True, worst=budget),
    # Null also where a range test taught the network nothing: no outcome, and so not the worst one.
    "largest_stable_lr": Measure("largest stable LR", "largest_stable_lr", ratio=True, any_status=True),
    "input_drift": Measure("drift of layer inputs", "input_drift", ratio=True),
    "gradient_change": Measure("change of gradients", "gradient_change", ratio=True),
    "loss_range": Measure("range of the loss", "loss_range", ratio=True),
    **{
        f"val_error_{name}": Measure("validation error %", f"val_error_{name}", unit=_POINTS)
        for name in ("running", "precise", "batch")
    },
    "inference_gap": Measure(
        "error, running - batch statistics", "val_error_running", "val_error_batch", _POINTS
    ),
}
