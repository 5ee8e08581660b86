"""How long training waits for data is measured, and said where it is too long; a model must fit the data's classes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bnbench.compose import compose_jobs
from bnbench.data import WatchedLoader
from bnbench.records import Record
from bnbench.training.setup import _probe
from bnbench.waiting import data_wait_remark
from tests.records_factory import make_record

STEPS, SLOW, QUICK = 4, 0.03, 0.001


class Sleepy:
    """A loader that sleeps for each of its four batches."""

    def __init__(self, first_epoch: float, others: float) -> None:
        self.pause, self.epoch = {0: first_epoch}, 0
        self.others = others

    def __len__(self) -> int:
        return STEPS

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self, first: int = 0):
        for step in range(first, STEPS):
            time.sleep(self.pause.get(self.epoch, self.others))
            yield step


def _trained(loader: WatchedLoader, epochs: int, step: float) -> dict[int, float]:
    """Seconds of each epoch of a training whose steps sleep."""
    seconds = {}
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        started = time.perf_counter()
        assert [batch for batch in loader if time.sleep(step) is None] == list(range(STEPS))
        seconds[epoch] = time.perf_counter() - started
    return seconds


def test_the_share_is_of_the_time_in_the_loader():
    waits, works = WatchedLoader(Sleepy(SLOW, SLOW)), WatchedLoader(Sleepy(QUICK, QUICK))
    assert len(waits) == STEPS
    assert waits.share(_trained(waits, 2, step=QUICK)) > 0.8
    assert works.share(_trained(works, 2, step=SLOW)) < 0.3
    assert waits.waited[1] >= STEPS * SLOW


def test_the_first_epoch_counts_only_where_it_is_the_only_one():
    """It waits for the workers to start."""
    loader = WatchedLoader(Sleepy(SLOW, QUICK))
    seconds = _trained(loader, 3, step=10 * QUICK)
    assert loader.share(seconds) < 0.4
    assert loader.share({0: seconds[0]}) > 0.6
    assert loader.share({}) is None, "a run that diverged before its first evaluation"


def test_an_epoch_that_is_broken_off_counts_what_it_waited():
    loader = WatchedLoader(Sleepy(SLOW, SLOW))
    next(iter(loader))
    assert SLOW <= loader.waited[0] < STEPS * SLOW


def test_an_epoch_that_is_gone_on_with_counts_on():
    loader = WatchedLoader(Sleepy(SLOW, SLOW))
    next(iter(loader))
    again = WatchedLoader(Sleepy(SLOW, SLOW))
    again.load_state_dict(loader.state_dict())
    again.first = 3
    assert list(again) == [3]
    assert 2 * SLOW <= again.waited[0] < STEPS * SLOW
    assert list(again) == list(range(STEPS)), "only once"


def test_watching_costs_next_to_nothing():
    loader = Sleepy(0, 0)
    loader.__class__ = type("Quick", (Sleepy,), {"batches": lambda self, first: iter(range(20_000))})
    started = time.perf_counter()
    assert sum(1 for _ in WatchedLoader(loader)) == 20_000
    assert (time.perf_counter() - started) / 20_000 < 20e-6, "seconds for each step"


def _record(share: float | None, workers: int | None, seed: int = 0) -> Record:
    record = make_record(seed=seed)
    record.config["data"] = {"workers": workers}
    if share is not None:
        record.timings["data_wait_share"] = share
    return record


@pytest.mark.parametrize("share", [None, 0.0, 0.1])
def test_nothing_is_said_of_a_loader_that_feeds_the_model(share):
    assert data_wait_remark([_record(share, 4), _record(share, None, seed=1)]) is None
    assert data_wait_remark([]) is None


def test_a_loader_that_cannot_feed_the_model_is_said_with_the_way_out():
    said = data_wait_remark([_record(0.344, 2)]) or ""
    assert said.startswith(
        "the loader cannot feed the model: 34% of a step waits for data; raise data.workers (now 2)"
    )
    assert "\n" not in said
    worst = _record(0.9, 0, seed=1)
    said = data_wait_remark([_record(0.2, 0), worst, _record(0.05, 0, seed=2)]) or ""
    assert "90% of a step" in said and worst.name in said and "2 of 3 runs" in said


def test_no_workers_are_asked_for_where_there_are_none():
    said = data_wait_remark([_record(0.2, None)]) or ""
    assert "making the batches takes 20% of a step" in said and "workers" not in said


class Own(nn.Module):
    """A user's own, with a head for so many classes."""

    def __init__(self, classes: int, pooled: bool = True) -> None:
        super().__init__()
        self.pooled, self.head = pooled, nn.Conv2d(3, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.head(images)
        return maps.mean((2, 3)) if self.pooled else maps


@pytest.mark.parametrize(("model", "said"), [(Own(7), r"\(32, 7\)"), (Own(10, False), r"\(32, 10, 16, 16\)")])
def test_a_model_that_does_not_fit_the_classes_is_one_line_before_training(model, said):
    (config,) = compose_jobs([], False)
    world = SimpleNamespace(device=torch.device("cpu"))
    _probe(Own(10), config, world, (3, 16, 16), 10)
    with pytest.raises(
        ValueError, match=rf"gives {said} for 32 images of data=digits, which has 10 classes"
    ) as caught:
        _probe(model, config, world, (3, 16, 16), 10)
    assert "\n" not in str(caught.value)
