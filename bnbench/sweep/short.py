"""A run cut short, and what it tells of the time that the whole run takes. No torch."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from dataclasses import dataclass

from bnbench.config import LoggerConfig, RunConfig, ScheduleConfig
from bnbench.records import EPOCHS, RECORD, Record, read_record

SHORT_EPOCHS = 3  # the first warms up, the others are timed
SLOW_START = 1e-3  # of the learning rate: a probe has no warmup, and a diverged one tells nothing


@dataclass(frozen=True)
class Probe(RunConfig):
    """A run of `SHORT_EPOCHS` epochs of `steps` steps each, evaluated on `images` images.

    It differs from the run that it stands for in what costs no time a step, and leaves its files in `dir`.
    """

    steps: int = 1
    images: int = 1

    @property
    def train_images(self) -> int:
        return max(self.steps * self.global_batch, self.norm.reference_size or 0)


class ProbeError(Exception):
    """What became of a probe that tells nothing; one line."""


@dataclass(frozen=True)
class Sizes:
    """Images of a run's sets."""

    train: int
    validation: int
    test: int


def shortened(run: RunConfig, folder: str, steps: int, images: int) -> Probe:
    """The probe of a run. Raises ProbeError where there is none: for a run over several nodes."""
    if run.trainer.num_nodes > 1:
        raise ProbeError(f"not probed from one host: trainer.num_nodes={run.trainer.num_nodes}")
    values = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    values |= {
        "dir": folder,
        "epochs": SHORT_EPOCHS,
        "evals_per_epoch": 1,
        "target_error": None,
        "claim": None,
        "optim": dataclasses.replace(run.optim, warmup_epochs=0.0, lr=SLOW_START * run.optim.lr),
        "schedule": ScheduleConfig("constant"),
        "logger": LoggerConfig("none"),
        "trainer": dataclasses.replace(
            run.trainer,
            checkpoint_minutes=None,
            time_limit_minutes=None,
            resume_world=None,
            save_weights=False,
        ),
    }
    return Probe(**values, steps=steps, images=images)


def evaluated_images(run: RunConfig, sizes: Sizes) -> int:
    """Images through the network in an evaluation, with what precise statistics take before it."""
    return sizes.validation + (_precise_images(run, sizes) if _is_precise(run) else 0)


def measured_images(run: RunConfig, sizes: Sizes) -> int:
    """Images through the network in the measures at a run's end (`training/evaluation.py`)."""
    found = 0
    if run.measure.statistics and run.nbs is not None:
        found += sizes.validation  # with running or with precise statistics, whichever is not the run's own
        found += 0 if _is_precise(run) else _precise_images(run, sizes)
        found += sizes.validation // run.global_batch * run.global_batch
    if run.measure.test:
        found += sizes.test
    if run.measure.generalization:
        found += min(sizes.train, sizes.validation)
    return found


def _is_precise(run: RunConfig) -> bool:
    return run.nbs is not None and run.norm.statistics == "precise"


def _precise_images(run: RunConfig, sizes: Sizes) -> int:
    return min(run.measure.precise_steps, sizes.train // run.global_batch) * run.global_batch


@dataclass(frozen=True)
class Timed:
    """What a probe took: seconds but for `step`, which is those of one step."""

    probe: Probe
    record: Record
    setup: float
    fixed: float  # of training, whatever its length: starting it, the first steps and the first evaluation
    step: float
    evaluation: float
    measure: float
    cut: Sizes
    whole: Sizes

    def as_long(self, run: RunConfig, steps: int, sizes: Sizes) -> dict[str, float]:
        """The `timings` of a record of `run`, or another probe of it, with so many steps an epoch on such sets."""
        evaluation = self.evaluation * _ratio(
            evaluated_images(run, sizes), evaluated_images(self.probe, self.cut)
        )
        epoch = steps * self.step + run.evals_per_epoch * evaluation
        measure = self.measure * _ratio(measured_images(run, sizes), measured_images(self.probe, self.cut))
        return {
            "setup_seconds": self.setup,
            "fit_seconds": self.fixed + run.epochs * epoch,
            "measure_seconds": measure,
        }


def _ratio(whole: int, part: int) -> float:
    return whole / part if part else 1.0


def read_timed(probe: Probe, whole: Sizes) -> Timed:
    """By the files of a finished probe. Raises ProbeError if it diverged."""
    record = read_record(probe.folder / RECORD)
    if record.status != "completed":
        raise ProbeError(f"{record.status}: {record.error}")
    with (probe.folder / EPOCHS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = int(rows[0]["step"])
    train, evaluation = (
        statistics.mean(float(row[key]) for row in rows[1:]) for key in ("train_seconds", "val_seconds")
    )
    fit = record.timings["fit_seconds"]
    kept = record.provenance["data"]
    return Timed(
        probe=probe,
        record=record,
        setup=record.timings["setup_seconds"],
        fixed=max(0.0, fit - SHORT_EPOCHS * (train + evaluation)),
        step=train / steps,
        evaluation=evaluation,
        measure=record.timings["measure_seconds"],
        cut=Sizes(kept["train_images"], kept.get("holdout_images", kept["test_images"]), kept["test_images"]),
        whole=whole,
    )
