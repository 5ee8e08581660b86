"""What the final network is worth beside its error: under three kinds of statistics, and on training images."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbench import data
from bnbench.config import RunConfig
from bnbench.models import logits_of
from bnbench.norms import tracking_norms
from bnbench.norms.precise import UnmeasurableError
from bnbench.norms.statistics import KeptBuffers
from bnbench.training.callbacks.series import Series
from bnbench.training.callbacks.statistics import RunningStatistics, load_statistics, precise_over
from bnbench.training.meter import Meter, Totals
from bnbench.training.setup import TEST_BATCH, Setup
from bnbench.training.world import World

STATISTICS = ("val_error_running", "val_error_precise", "val_error_batch", "val_images_batch")
GENERALIZATION = ("train_eval_error", "train_eval_loss")
Batch = tuple[Tensor, Tensor]


@dataclass
class Measured:
    """`metrics` for the record (errors in percent, losses mean cross-entropy, null where there is no number)."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # why a number is missing
    seconds: float = 0.0


class FinalMeasures:
    """Measures a run's final network, on copies of it: the network and all random numbers stay as they are.

    Errors on the evaluation set, for a run whose norm shares statistics over images:

    - `val_error_running`: with running averages, merged over ranks (rank 0's, where that is the policy);
    - `val_error_precise`: with precise statistics of the training images (`precise_statistics`);
    - `val_error_batch`: with batch statistics, in global batches and statistics groups like those of training,
      all else in evaluation mode; over `val_images_batch` images, since a partial last batch would have another
      NBS. Frozen statistics are frozen in all three.

    With `measure.test` `test_error`, under the run's own policy, where the evaluation set is held out for tuning.

    For every run `train_eval_error` and `train_eval_loss`: in evaluation mode on training images without
    augmentation, as many as there are evaluation images, chosen alike on every machine. Their distance to the
    evaluation set's is the generalization gap.

    A collective for each number, and one for precise statistics; call it on every rank. Null with a remark:
    what a run's data do not allow.
    """

    def __init__(self, config: RunConfig, world: World, setup: Setup, running: RunningStatistics) -> None:
        self.config, self.setup, self.running = config, setup, running
        self.place = {"rank": world.place.rank, "world_size": world.place.size}

    def measure(self, context: Callable[[], AbstractContextManager[Any]], done: bool) -> Measured:
        """`context` is autocast's, as in validation. A run that is not `done` (it diverged) has no numbers."""
        started, measure = time.perf_counter(), self.config.measure
        measured = Measured()
        if measure.statistics and self.config.nbs is not None:
            measured.metrics |= dict.fromkeys(STATISTICS)
        if measure.test:
            measured.metrics |= {"test_error": None}
        if measure.generalization:
            measured.metrics |= dict.fromkeys(GENERALIZATION)
        if done:
            with torch.no_grad(), context():
                for key, find in (
                    ("val_error_running", self._by_running),
                    ("val_error_precise", self._by_precise),
                    ("val_error_batch", self._by_batch),
                    ("test_error", self._on_test_images),
                    ("train_eval_error", self._on_training_images),
                ):
                    if key in measured.metrics:
                        try:
                            measured.metrics |= find()
                        except UnmeasurableError as error:
                            measured.remarks.append(f"{key}: {error}")
        measured.seconds = time.perf_counter() - started
        return measured

    @property
    def _validated(self) -> Totals | None:
        """What the run's own policy came to: training ends with an evaluation, under it and of these weights."""
        return self.setup.module.validated

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.setup.module.evaluated).eval()

    def _by_running(self) -> dict[str, float | None]:
        if self.running.precise is None and self._validated is not None:
            return {"val_error_running": _error(self._validated)}
        network = self._copy()
        load_statistics(network, self.running.averages)
        return {"val_error_running": _error(evaluate(network, self.setup.test_loader))}

    def _by_precise(self) -> dict[str, float | None]:
        if self.running.precise is not None and self._validated is not None:
            return {"val_error_precise": _error(self._validated)}
        network = self._copy()
        if self.running.precise is None:  # else that is what the network has
            precise_over(self.setup.train_loader, self.config.measure.precise_steps)(network)
        return {"val_error_precise": _error(evaluate(network, self.setup.test_loader))}

    def _by_batch(self) -> dict[str, float | None]:
        config, images = self.config, self.setup.splits.validation
        if len(images) < config.global_batch:
            raise UnmeasurableError(
                f"{len(images)} evaluation images do not fill one global batch of {config.global_batch}"
            )
        step: dict[str, Any] = {"global_batch": config.global_batch, "seed": config.seed, "span": config.span}
        step |= {"accumulate": config.recipe.accumulate, **self.place}
        network = self._copy()
        load_statistics(network, self.running.averages)  # what Batch Renormalization reads
        for norm in tracking_norms(network).values():
            norm.train()
        with self._loader(images, data.TrainLoader, data.StreamedTrainLoader, "none", **step) as loader:
            totals = evaluate(network, _each_anew(network, loader))
        return {"val_error_batch": _error(totals), "val_images_batch": int(totals.images)}

    def _on_test_images(self) -> dict[str, float | None]:
        with self._in_order(self.setup.splits.test) as loader:
            return {"test_error": _error(evaluate(self._copy(), loader))}

    def _on_training_images(self) -> dict[str, float | None]:
        train, validation = self.setup.splits.train, self.setup.splits.validation
        chosen = train.first(min(len(train), len(validation)), "max_train")
        with self._in_order(chosen) as loader:
            totals = evaluate(self._copy(), loader)
        return {"train_eval_error": _error(totals), "train_eval_loss": _finite(totals.loss, totals)}

    def _in_order(self, images: Any) -> AbstractContextManager[Iterable[Batch]]:
        """A loader of each of `images` once, as an evaluation takes them."""
        batch = data.STREAMED_TEST_BATCH if isinstance(images, data.FileSet) else TEST_BATCH
        return self._loader(images, data.TestLoader, data.StreamedTestLoader, batch=batch, **self.place)

    @contextmanager
    def _loader(
        self, images: Any, in_memory: Any, streamed: Any, *more: Any, **options: Any
    ) -> Iterator[Iterable[Batch]]:
        """A loader of its own over `images`, of the kind that they need."""
        normalize = self.setup.test_loader.normalize
        if not isinstance(images, data.FileSet):
            yield in_memory(images, normalize, *more, **options)
            return
        loader = streamed(images, normalize, *more, workers=self.config.data.workers, **options)
        try:
            yield loader
        finally:
            loader.close()


def evaluate(network: nn.Module, batches: Iterable[Batch]) -> Totals:
    """Loss and error of a network, in the mode that it is in, over all ranks' batches: one collective."""
    meter = Meter()
    for images, labels in batches:
        logits = logits_of(network(images))[0]
        meter.add(F.cross_entropy(logits.double(), labels), logits, labels)
    return meter.drain()


def _each_anew(network: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Each batch finds the buffers as they are now, whatever the one before did to them."""
    kept = KeptBuffers(network)
    for batch in batches:
        yield batch
        kept.restore()


def _error(totals: Totals) -> float | None:
    return _finite(totals.error, totals)


def _finite(value: float, totals: Totals) -> float | None:
    """Logits that are no numbers have a largest one all the same: their error says nothing."""
    return value if math.isfinite(totals.loss) else None


def landscape_metrics(config: RunConfig, series: Series, done: bool) -> dict[str, Any]:
    """For a run that measured its landscape: each signal's typical value over the whole of training."""
    names = ("input_drift", "gradient_change", "loss_range") if config.measure.landscape else ()
    return {name: series.typical(name) if done else None for name in names}
