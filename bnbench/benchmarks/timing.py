"""Times on a noisy machine: contenders take turns, each next to its reference, and only ratios are judged.

One contender to its end before the next, as torch.utils.benchmark compares them, would let a neighbour's load or a
lowered clock fall on one of them. Here a round visits every contender, and beside each of them the layer that it is
compared with; one ratio a round, and their median with an interval that assumes no distribution. Each visit is a
torch.utils.benchmark.Timer's, which warms up, waits for a GPU and keeps the garbage collector off. On one CPU
thread its clock is the process's own CPU time, which stands still while others have the core.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .figures import median_interval

VISIT_SECONDS = 0.004  # a visit repeats a shorter call until it lasts about this long
# glibc's mallopt: never mmap a block, and never hand the heap's top back to the system.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass
class Step:
    """A layer's forward and backward pass over fixed tensors: what is timed, and what is counted."""

    layer: nn.Module
    x: Tensor
    dys: tuple[Tensor, ...]  # a gradient for each output; leaves of no graph
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.inputs = [self.x, *(p for p in self.layer.parameters() if p.requires_grad)]

    def forward(self) -> tuple[Tensor, ...]:
        if self.autocast is None:
            y = self.layer(self.x)
        else:
            with torch.autocast(self.x.device.type, self.autocast):
                y = self.layer(self.x)
        return y if isinstance(y, tuple) else (y,)

    def backward(self, ys: tuple[Tensor, ...]) -> None:
        # Not ys.backward(): adding up into .grad is no part of a layer.
        torch.autograd.grad(ys, self.inputs, self.dys)


@dataclass(frozen=True)
class Seconds:
    """Of one call, the mean over a visit."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


Clock = Callable[[], float]


def wall_time() -> float:
    """Once a GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def visit(step: Step, calls: int, clock: Clock, before: Callable[[], object] = lambda: None) -> Seconds:
    """The means of `calls` calls, once of the forward pass and once of both: the backward pass is their difference.

    Each time after two calls that are not timed: they find the memory that the last layer left. `before` them and the
    timed ones, e.g. a barrier. A forward pass without a backward one lets go of what it has saved within its own time.
    """
    from torch.utils.benchmark import Timer  # with it comes a compiler's search for CUDA, which may speak up

    forward, both = (
        Timer(
            statement,
            setup="before()",
            timer=clock,
            globals={"step": step, "before": before},
            num_threads=torch.get_num_threads(),
        )
        .timeit(calls)
        .mean
        for statement in ("step.forward()", "step.backward(step.forward())")
    )
    return Seconds(forward, both - forward)


def calls_a_visit(step: Step, clock: Clock) -> int:
    """As many as last about VISIT_SECONDS; the fastest of three tries, since the first ones are slow."""
    fastest = min(visit(step, 1, clock).total for _ in range(3))
    return max(1, round(VISIT_SECONDS / max(fastest, 1e-6)))


def interleave(
    steps: dict[str, Step],
    references: dict[str, str],
    rounds: int,
    clock: Clock = wall_time,
    calls: dict[str, int] | None = None,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[tuple[Seconds, Seconds]]]:
    """By contender, in each round: its own times and those of its reference, visited next to it.

    Which of the two is first alternates by round. `references` maps a contender to the name of another step,
    or to its own: that one is visited alone. `calls` a visit: worked out unless given (ranks must agree).
    """
    calls = calls or {name: calls_a_visit(step, clock) for name, step in steps.items()}
    pairs: dict[str, list[tuple[Seconds, Seconds]]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in steps:
            order = [name, references[name]] if number % 2 else [references[name], name]
            found = {each: visit(steps[each], calls[each], clock, before) for each in dict.fromkeys(order)}
            pairs[name].append((found[name], found[references[name]]))
    return pairs


def summary(pairs: Sequence[tuple[Seconds, Seconds]]) -> dict[str, object]:
    """Milliseconds of the contender, and its ratio to its reference with an interval of the median."""
    ratios = [mine.total / other.total for mine, other in pairs]
    low, high, confidence = median_interval(ratios)
    return {
        "forward_ms": 1000 * statistics.median(mine.forward for mine, _ in pairs),
        "backward_ms": 1000 * statistics.median(mine.backward for mine, _ in pairs),
        "total_ms": 1000 * statistics.median(mine.total for mine, _ in pairs),
        "ratio": statistics.median(ratios),
        "ratio_interval": [low, high],
        "ratio_interval_confidence": confidence,
    }


def keep_freed_memory() -> bool:
    """Let this process's allocator keep what it frees, for good; False where it is not glibc's.

    Otherwise a block of 16 MiB may or may not go back to the system, and to fault 4,096 pages in again costs
    more than BatchNorm2d's whole backward pass: torch's own layer then takes 17 or 28 ms, by chance.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
