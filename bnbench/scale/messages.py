"""What a collective takes among some ranks, by its size, where it comes between computations as in a training step.

One call straight after another finds every rank and thread awake and waiting: several times faster than SyncBN's calls,
for which the ranks arrive from a stretch of computing, one later than another. So each call here comes behind such a
stretch, and what the stretches take without calls, all ranks busy too, is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .cost_model import KINDS, Kind

SIZES = tuple(2**n for n in range(10, 27, 2))  # bytes, 1 KB to 64 MB, of what a rank holds in the end
VISIT_SECONDS, MOST_CALLS = 0.05, 20
LONGEST_STRETCH = 0.002  # seconds: the noise of a longer one would hide the call


class Messages:
    """Both collectives at every size in a process group, each call behind `gap` seconds of computing.

    Make it, and visit it, on each of the group's ranks alike.
    """

    def __init__(self, group: Any, device: torch.device, gap: float, sizes: tuple[int, ...] = SIZES) -> None:
        self.group, self.device = group, device
        self._compute = _stretch(min(gap, LONGEST_STRETCH), device, group)
        self._calls: dict[tuple[Kind, int], tuple[Callable[[], Any], int]] = {}
        for kind in KINDS:
            for size in sizes:
                call, payload = _collective(kind, size, dist.get_world_size(group), group, device)
                fastest = min(self._seconds(call, 1) for _ in range(2))
                count = min(MOST_CALLS, max(1, round(VISIT_SECONDS / fastest)))
                self._calls[kind, payload] = (call, agreed(count, group))

    def visit(self) -> dict[Kind, dict[int, float]]:
        """Seconds of a call, the mean over a visit, by kind and bytes of each rank; by noise perhaps below 0."""
        found: dict[Kind, dict[int, float]] = {kind: {} for kind in KINDS}
        for (kind, payload), (call, count) in self._calls.items():
            with_calls, without = self._seconds(call, count), self._seconds(None, count)
            found[kind][payload] = with_calls - without
        return found

    def _seconds(self, call: Callable[[], Any] | None, count: int) -> float:
        """Of a stretch of computing, and the call behind it; the mean of `count`, on the slowest rank."""
        self._compute()
        if call is not None:
            call()  # finds the memory that the last size left
        synchronize(self.device)
        dist.barrier(self.group)
        started = time.perf_counter()
        for _ in range(count):
            self._compute()
            if call is not None:
                call()
        synchronize(self.device)
        return slowest((time.perf_counter() - started) / count, self.group, self.device)


def _stretch(seconds: float, device: torch.device, group: Any) -> Callable[[], None]:
    """Convolutions that take about `seconds`."""
    x, filters = torch.randn(8, 32, 16, 16, device=device), torch.randn(32, 32, 3, 3, device=device)

    def convolve(times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                F.conv2d(x, filters, padding=1)

    def timed(times: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        convolve(times)
        synchronize(device)
        return (time.perf_counter() - started) / times

    convolve(1)
    return partial(convolve, agreed(max(1, round(seconds / min(timed(5) for _ in range(3)))), group))


def _collective(
    kind: Kind, size: int, ranks: int, group: Any, device: torch.device
) -> tuple[Callable[[], Any], int]:
    """The call, and the bytes that each rank gives: as SyncBN makes it, of fp32."""
    if kind == "all_reduce":
        values = torch.zeros(size // 4, device=device)
        return partial(dist.all_reduce, values, group=group), size
    mine: Tensor = torch.zeros(max(1, size // 4 // ranks), device=device)
    parts = mine.new_empty(ranks * mine.numel())
    return partial(dist.all_gather_into_tensor, parts, mine, group=group), mine.nbytes


def synchronize(device: torch.device) -> None:
    """Wait for what was queued, so that a clock sees it done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def slowest(seconds: float, group: Any, device: torch.device) -> float:
    """The most that a rank of the group took: in a step of all the others wait for it."""
    box = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX, group=group)
    return box.item()


def agreed(value: Any, group: Any) -> Any:
    """The group's first rank's value: with counts of their own, ranks would wait for each other for ever."""
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_process_group_ranks(group)[0], group=group)
    return box[0]
