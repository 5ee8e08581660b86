"""What `measure.py` found on the ranks at hand, and the links and compute that follow from it. No torch.

Every time is there once a round, and a statement is made from their medians. Drawing rounds again with replacement
gives its spread (Efron 1979's bootstrap); times of one round stay together, since what disturbs one disturbs all.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cost_model import KINDS, Algorithm, Collective, Compute, Kind, Link, Workload, steps, traffic

RESAMPLES = 200
CONFIDENCE = 0.9

Times = Sequence[float]  # seconds, one a round


@dataclass(frozen=True)
class WorldTimes:
    """Of the first `ranks` ranks, all of them busy and the others idle.

    `messages`: seconds of a collective by kind and bytes of each rank; `alone`, of one in a group of one rank, which is
    what calling it costs. `steps`: seconds of a training step by `bn` or `sync`, with `alone` where each rank trains
    for itself and a group holds one rank, so that SyncBN's arithmetic is there and its communication is not.
    """

    ranks: int
    messages: Mapping[Kind, Mapping[int, Times]]
    alone: Mapping[Kind, Times]
    steps: Mapping[str, Times]


@dataclass(frozen=True)
class Measured:
    """`node`: ranks on each node of the world at hand."""

    work: Workload
    node: int
    overlaps: bool
    worlds: tuple[WorldTimes, ...]

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Measured:
        """From the JSON that `measure.py` makes."""
        worlds = []
        for world in found["worlds"]:
            messages = {
                kind: {int(size): times for size, times in world["messages"][kind].items()} for kind in KINDS
            }
            worlds.append(WorldTimes(world["ranks"], messages, world["alone"], world["steps"]))
        return cls(workload_of(found), found["node"], found["overlaps"], tuple(worlds))

    @property
    def rounds(self) -> int:
        return len(self.worlds[0].steps["bn alone"])

    @property
    def all_rounds(self) -> Draw:
        return Draw(self, range(self.rounds))

    def misfits(self, world: WorldTimes, kind: Kind) -> list[float]:
        """How far the line through all sizes of message is from each, as `fit_link` weighs it, in order of size."""
        line = self.all_rounds.links_at(world)[kind]
        model = Collective(kind, "ring", line, line, world.ranks)
        timings = self.all_rounds.timings(world, kind)
        middle = statistics.median(t.seconds for t in timings)
        return [abs(model.seconds(t.ranks, t.payload) - t.seconds) / max(middle, t.seconds) for t in timings]


def workload_of(found: Mapping[str, Any]) -> Workload:
    return Workload(tuple(found["channels"]), found["gradient_bytes"])


@dataclass(frozen=True)
class Timing:
    """The median of one message's times."""

    ranks: int
    payload: int
    seconds: float


class Draw:
    """A choice of rounds, and what follows from the medians over them."""

    def __init__(self, measured: Measured, rounds: Sequence[int]) -> None:
        self.measured, self.rounds = measured, rounds

    def median(self, times: Times) -> float:
        return statistics.median(times[n] for n in self.rounds)

    def timings(self, world: WorldTimes, kind: Kind) -> list[Timing]:
        return [Timing(world.ranks, size, self.median(times)) for size, times in world.messages[kind].items()]

    def compute(self, world: WorldTimes) -> Compute:
        """A step on a rank of `world` by itself; SyncBN's arithmetic without the calls of its collectives."""
        layers = len(self.measured.work.channels)
        bn, sync = (self.median(world.steps[f"{norm} alone"]) for norm in ("bn", "sync"))
        calls = layers * sum(self.median(world.alone[kind]) for kind in KINDS)
        return Compute(bn, max(0.0, sync - calls - bn), self.measured.overlaps)

    def links_at(self, world: WorldTimes) -> dict[Kind, Link]:
        """By `world`'s own messages: what its latency is made of does not matter there."""
        return {kind: fit_link(kind, "ring", world.ranks, self.timings(world, kind)) for kind in KINDS}

    def links(self, algorithm: Algorithm) -> tuple[dict[Kind, Link], dict[Kind, Link] | None]:
        """Within a node and between nodes, by every world at hand; no second where one node holds all ranks."""
        node = self.measured.node
        within: dict[Kind, Link] = {}
        between: dict[Kind, Link] = {}
        for kind in KINDS:
            timings = [t for world in self.measured.worlds for t in self.timings(world, kind)]
            near = [t for t in timings if t.ranks <= node]
            far = [t for t in timings if t.ranks > node]
            if near:
                within[kind] = fit_link(kind, algorithm, node, near)
            if far:
                between[kind] = fit_link(kind, algorithm, node, far, within.get(kind))
        return within or between, between or None


def fit_link(
    kind: Kind, algorithm: Algorithm, node: int, timings: Sequence[Timing], inner: Link | None = None
) -> Link:
    """The link whose times come closest to those measured, none of its numbers below 0.

    Closest in proportion to each time, and to the median one where it is shorter: short ones have the noise of the
    computing around them. Messages of one number of ranks cannot tell `call` from `alpha`: it is 0 then. With `inner`,
    the link within a node, the one between nodes.
    """
    import numpy as np
    from scipy.optimize import nnls

    several = len({t.ranks for t in timings}) > 1
    rows, known = [], []
    for t in timings:
        near, far = steps(kind, algorithm, t.ranks, node)
        moved = traffic(kind, t.ranks) * t.payload
        if inner is None:
            rows.append([1.0 if several else 0.0, near + far, moved])
            known.append(0.0)
        else:
            rows.append([0.0, far, moved])
            known.append(inner.call + near * inner.alpha)
    seconds = np.array([t.seconds for t in timings])
    against = np.maximum(seconds, np.median(seconds))
    # Bytes are counted in units that make the columns alike, or the solver takes the small one for nothing.
    scale = np.array([1.0, 1.0, 1e-6])
    found = nnls(np.array(rows) * scale / against[:, None], (seconds - np.array(known)) / against)[0] * scale
    call, alpha, per_byte = (float(value) for value in found)
    return Link(alpha, 1 / per_byte if per_byte > 0 else math.inf, call)


def draws(measured: Measured, seed: int = 0) -> Iterator[Draw]:
    """All rounds first, then drawn again and again."""
    yield measured.all_rounds
    chooser = random.Random(seed)
    for _ in range(RESAMPLES):
        yield Draw(measured, chooser.choices(range(measured.rounds), k=measured.rounds))


@dataclass(frozen=True)
class Spread:
    """A number with the interval that drawing rounds again gives it."""

    value: float
    low: float
    high: float


def spread(measured: Measured, statement: Callable[[Draw], Mapping[Any, float]]) -> dict[Any, Spread]:
    """Each number of a statement about a draw, by its name."""
    first, *others = [statement(draw) for draw in draws(measured)]
    found = {}
    for name, value in first.items():
        ordered = sorted(other[name] for other in others)
        tail = int(len(ordered) * (1 - CONFIDENCE) / 2)
        found[name] = Spread(value, ordered[tail], ordered[-1 - tail])
    return found
