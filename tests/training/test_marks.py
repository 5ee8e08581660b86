"""Marks: every moment of a step is of one part, and what they put in comes out again."""

from __future__ import annotations

import inspect
import re
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules import _functions

from bnbench.training.marks import CALLS, PARTS, UNMARKED, Marks
from tests.ranks import on_ranks

CPU = torch.device("cpu")


def test_parts_add_up_to_the_time_between_the_first_mark_and_the_last():
    before = time.perf_counter()
    marks = Marks(CPU, 1)
    within = time.perf_counter()
    for part, seconds in (("data_wait", 0.02), ("forward", 0.01), ("backward", 0.0), ("forward", 0.01)):
        marks.begin(part)
        time.sleep(seconds)
    inside = time.perf_counter()
    marks.end()
    after = time.perf_counter()
    found = marks.milliseconds()
    assert tuple(found) == PARTS
    assert 1000 * (inside - within) <= sum(found.values()) <= 1000 * (after - before)
    assert found["data_wait"] >= 20 and found["forward"] >= 20
    assert found["optimizer"] == found["communication"] == 0


def test_a_call_is_communication_and_then_its_part_goes_on(monkeypatch):
    marks = Marks(CPU, 2)
    parts = []
    monkeypatch.setattr(dist, "all_reduce", lambda x: (parts.append(marks.part), time.sleep(0.02)))
    marks.begin("backward")
    marks.watch_calls()
    try:
        dist.all_reduce(torch.ones(1))
        assert marks.part == "backward"
    finally:
        marks.leave_calls()
    marks.end()
    assert parts == ["communication"]
    assert marks.milliseconds()["communication"] >= 20


def test_every_collective_of_torchs_syncbn_is_watched():
    """Also of those that it makes with NCCL alone."""
    called = set(re.findall(r"dist\.(\w+)\(", inspect.getsource(_functions.SyncBatchNorm)))
    called -= {name for name in called if name.startswith(("get_", "is_"))}
    assert called and called <= set(CALLS)


def test_a_call_that_fails_leaves_everything_as_it_was():
    before = {name: getattr(dist, name) for name in CALLS}
    marks = Marks(CPU, 2)
    marks.begin("forward")
    marks.watch_calls()
    with pytest.raises((ValueError, RuntimeError)):
        dist.all_reduce(torch.ones(1))  # there is no world
    assert marks.part == "forward"
    marks.leave_calls()
    assert {name: getattr(dist, name) for name in CALLS} == before
    marks.leave_calls()  # again is nothing
    assert {name: getattr(dist, name) for name in CALLS} == before


def test_nobody_looking_is_nothing():
    loss = torch.ones(1, requires_grad=True).sum()
    UNMARKED.begin("forward")
    UNMARKED.before_backward(loss)
    assert UNMARKED.part == "other"
    assert not loss._backward_hooks


def _slow_rank(world):
    """Two ranks, of which the second computes its gradients 50 ms later; parts of either's backward pass."""
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    ddp = nn.parallel.DistributedDataParallel(network)
    for _ in range(2):
        marks = Marks(CPU, world.place.size)
        loss = ddp(torch.ones(2, 4)).square().mean()
        if world.place.rank == 1:
            loss.register_hook(lambda gradient: time.sleep(0.05))
        marks.begin("backward")
        marks.before_backward(loss)
        loss.backward()
        marks.begin("optimizer")
        marks.end()
    return marks.milliseconds()


def test_who_is_early_waits_and_who_is_late_works():
    early, late = on_ranks(2, _slow_rank)
    assert late["backward"] >= 50
    assert early["communication"] >= 30, "DDP's wait for the other rank's gradients"
    assert late["communication"] < early["communication"]
    assert early["backward"] < late["backward"]


def test_alone_there_is_nobody_to_wait_for():
    marks = Marks(CPU, 1)
    loss = torch.ones(1, requires_grad=True).sum()
    marks.begin("backward")
    marks.before_backward(loss)
    loss.backward()
    marks.end()
    assert marks.milliseconds()["communication"] == 0


class _Event:
    """CUDA's, on a device that is two marks behind the host."""

    recorded: list[_Event]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = len(self.recorded)
        self.recorded.append(self)

    def query(self) -> bool:
        return self.at <= len(self.recorded) - 3

    def synchronize(self) -> None:
        self.recorded += [None, None]

    def elapsed_time(self, other: _Event) -> float:
        assert self.query() and other.query(), "read before the device was there"
        return 2.0 * (other.at - self.at)


def test_on_cuda_the_device_is_asked_and_never_waited_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(_Event, "recorded", [], raising=False)
    marks = Marks(torch.device("cuda", 0), 2)
    for part in ("forward", "backward", "communication", "optimizer"):
        marks.begin(part)
    marks.end()
    assert not marks.ready
    marks.wait()
    assert marks.ready
    found = marks.milliseconds()
    assert sum(found.values()) == 10
    assert found["communication"] == 2 and found["data_wait"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_parts_are_the_device_s_time():
    device = torch.device("cuda", 0)
    x = torch.ones(4096, 4096, device=device)
    torch.cuda.synchronize()
    began = time.perf_counter()
    marks = Marks(device, 1)
    marks.begin("forward")
    for _ in range(50):
        x = x @ x
    marks.begin("other")
    marks.end()
    marks.wait()
    wall = 1000 * (time.perf_counter() - began)
    found = marks.milliseconds()
    assert found["forward"] > 0.5 * wall
    assert sum(found.values()) <= 1.05 * wall
