"""Marks between the parts of a step, on the clock of the device that does the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PARTS = ("data_wait", "forward", "backward", "communication", "optimizer", "other")
# torch.distributed's calls that wait for other ranks, where this torch has them: all_gather_single is new. DDP's
# reducer makes none of them.
CALLS = tuple(
    name
    for name in (
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_single",
        "all_reduce",
        "all_to_all",
        "all_to_all_single",
        "broadcast",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_single",
        "reduce_scatter_tensor",
    )
    if hasattr(dist, name)
)


class Unmarked:
    """The marks of a step that nobody looks at."""

    part = "other"

    def begin(self, part: str) -> None:
        """From here on, and until the next call, the time is that part's."""

    def before_backward(self, loss: Tensor) -> None:
        """`loss` is about to be differentiated by a pass that averages the gradients over ranks."""


UNMARKED = Unmarked()


class Marks(Unmarked):
    """The marks of one step. Every moment of it is of one of `PARTS`, so that they add up to the step.

    On a CPU a mark is the host's time. On CUDA it is an event on the current stream: what counts is when the device
    comes by, nothing waits for it in the step, and a device that idles because the host is late counts for the part
    that it idles in. `ready` says whether it has passed the last mark.

    `communication` is what stands still for other ranks: from the last gradient computed on this rank to the end of
    the backward pass, where DDP waits for the gradients' average (what of that overlaps with the backward pass costs
    nothing here), and, between `watch_calls` and `leave_calls`, the calls of torch.distributed, a norm's among them.
    Waiting for a slower rank is part of it. `ranks`: of the world; with one there is nothing to wait for.
    """

    def __init__(self, device: torch.device, ranks: int) -> None:
        self.cuda, self.ranks = device.type == "cuda", ranks
        self._marks: list[tuple[str, Any]] = []
        self._calls: dict[str, Callable[..., Any]] = {}
        self.begin("other")

    def begin(self, part: str) -> None:
        self.part = part
        self._marks.append((part, self._now()))

    def end(self) -> None:
        """The step is over: no mark comes after."""
        self.begin("")

    def before_backward(self, loss: Tensor) -> None:
        if self.ranks > 1:
            loss.register_hook(self._queue)

    def _queue(self, gradient: Tensor) -> None:
        # Called at the end of the backward pass, in the order of queueing: DDP queues its own, which waits, when its
        # last bucket is full.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self.begin("communication"))

    def watch_calls(self) -> None:
        for name in CALLS:
            self._calls[name] = call = getattr(dist, name)
            setattr(dist, name, self._watched(call))

    def leave_calls(self) -> None:
        for name, call in self._calls.items():
            setattr(dist, name, call)
        self._calls = {}

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            before = self.part
            self.begin("communication")
            try:
                return call(*args, **kwargs)
            finally:
                self.begin(before)

        return watched

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def ready(self) -> bool:
        return not self.cuda or self._marks[-1][1].query()

    def wait(self) -> None:
        if self.cuda:
            self._marks[-1][1].synchronize()

    def milliseconds(self) -> dict[str, float]:
        """Of each of `PARTS`; only once the device is `ready`."""
        found = dict.fromkeys(PARTS, 0.0)
        for (part, since), (_, until) in zip(self._marks, self._marks[1:], strict=False):
            found[part] += since.elapsed_time(until) if self.cuda else 1000 * (until - since)
        return found
