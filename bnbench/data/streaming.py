"""Loaders over sets that stay on disk: worker processes decode and augment what the order of all worlds asks for."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bnbench.signals import FROM_OUTSIDE, ignore

from .files import FileSet, decode, transform
from .loader import Batch, Normalizer, StepLoader
from .order import AUGMENTATION, mix

PR_SET_PDEATHSIG = 1  # linux/prctl.h
Draw = tuple[int, int]  # which image, and the seed of its augmentation


class Decoded(Dataset):
    """(3, S, S) uint8 and label of a Draw: the same in whichever process, and after whatever was drawn before."""

    def __init__(self, data: FileSet, augment: str) -> None:
        self.data, self.transform = data, transform(data.size, augment)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        index, seed = draw
        image = decode(self.data.path(index))
        with torch.random.fork_rng(devices=[]):  # without workers, the run's own numbers come from here
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPU's too
            return self.transform(image), self.data.labels[index]


class StreamedTrainLoader(StepLoader):
    """Batches of images decoded by `workers` processes.

    Image i of a global step is augmented by draws from (seed, step, i). Raises ValueError, while iterating, for a file
    that does not decode, named.
    """

    def __init__(
        self, data: FileSet, normalize: Normalizer, augment: str, *, workers: int, **order: Any
    ) -> None:
        super().__init__(data, normalize, **order)
        self.data = data
        self.workers, self._decoded, self._iterating = workers, Decoded(data, augment), False
        self._draws = _Draws(self)
        self._batches = self._read(self._draws, keep_workers=True)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The others are not decoded."""
        if self._iterating:  # precise statistics, in the midst of an epoch: kept workers serve one iteration
            yield from _on_device(self._read(_Draws(self, first), keep_workers=False), self.normalize)
            return
        self._iterating, self._draws.first = True, first
        try:
            yield from _on_device(self._batches, self.normalize)
        finally:
            self._iterating = False

    def _read(self, draws: _Draws, keep_workers: bool) -> DataLoader:
        device = self.normalize.scale.device
        return _data_loader(self._decoded, draws, self.workers, device, keep_workers)

    def close(self) -> None:
        """End the workers, which otherwise wait for the next epoch."""
        _end_workers(self._batches)


class StreamedTestLoader:
    """TestLoader's share of the set: every image exactly once over the ranks of any world, never padded."""

    __test__ = False  # pytest: no test class

    def __init__(
        self,
        data: FileSet,
        normalize: Normalizer,
        *,
        workers: int,
        batch: int,
        rank: int,
        world_size: int,
    ) -> None:
        if len(data) < world_size:
            raise ValueError(
                f"{len(data)} test images do not reach for {world_size} ranks: raise data.max_test, or "
                "use fewer ranks"
            )
        self.data, self.normalize = data, normalize
        mine = [(index, 0) for index in range(rank, len(data), world_size)]
        batches = [mine[first : first + batch] for first in range(0, len(mine), batch)]
        self._batches = _data_loader(Decoded(data, "none"), batches, workers, normalize.scale.device, True)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _on_device(self._batches, self.normalize)

    def close(self) -> None:
        _end_workers(self._batches)


class _Draws:
    """The draws of each of this rank's batches in the loader's current epoch, from batch `first` on."""

    def __init__(self, loader: StreamedTrainLoader, first: int = 0) -> None:
        self.loader, self.first = loader, first

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Draw]]:
        of = self.loader
        for step, indices, place in of.shares(self.first):
            chosen, numbers = indices[place].tolist(), range(of.global_batch)[place]
            first = step * of.global_batch
            yield [
                (index, mix(of.seed, AUGMENTATION, first + i))
                for index, i in zip(chosen, numbers, strict=True)
            ]


def _data_loader(
    data: Dataset, batches: Iterable[Sequence[Draw]], workers: int, device: torch.device, keep: bool
) -> DataLoader:
    options: dict[str, Any] = {}
    if workers:
        # Forked, a worker is its rank's own child, which ends with it; the ranks' server would keep it alive.
        options = {
            "multiprocessing_context": "fork",
            "persistent_workers": keep,
            "worker_init_fn": _end_with_rank,
        }
    return DataLoader(
        data,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # it draws a seed for its workers, else from the run's own numbers
        **options,
    )


def _end_with_rank(_: int) -> None:
    """Be killed when the rank is: by itself a worker looks for its rank every 5 seconds.

    Until then it would hold the rank's connections open, and the others would not see that the rank is gone.
    """
    ignore(FROM_OUTSIDE)  # sent to all: the rank first makes a checkpoint
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _on_device(batches: DataLoader, normalize: Normalizer) -> Iterator[Batch]:
    device = normalize.scale.device
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        yield normalize(images), labels.to(device, non_blocking=True)


def _end_workers(batches: DataLoader) -> None:
    iterator, batches._iterator = batches._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]
