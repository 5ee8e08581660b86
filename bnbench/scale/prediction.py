"""From what was measured or given to steps: on the ranks at hand, and on 1 to thousands of GPUs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cost_model import (
    ALGORITHMS,
    Algorithm,
    Compute,
    Kind,
    Link,
    Network,
    Workload,
    network,
    sizes_up_to,
    step,
)
from .measured import Draw, Measured, Spread, spread

CHECKED = (
    "bn",
    "sync",
    "overhead",
)  # a step of BN on each rank, of SyncBN over all of them; their difference
SPANS = ("device", "node", "group", "world")


@dataclass(frozen=True)
class Cluster:
    """What is asked about: ranks of a node and of a group that shares statistics, and the most GPUs.

    A link that is None is the measured one.
    """

    node: int = 8
    group: int = 16
    most: int = 4096
    within: Link | None = None
    between: Link | None = None

    def ranks(self, span: str, world: int) -> int:
        """Ranks that share statistics: the whole world, where it is smaller than the span."""
        return min(world, {"device": 1, "node": self.node, "group": self.group, "world": world}[span])


@dataclass(frozen=True)
class Check:
    """Seconds on ranks at hand, predicted and measured; `what` is one of CHECKED."""

    ranks: int
    what: str
    predicted: Spread
    measured: Spread

    @property
    def ratio(self) -> float:
        return self.predicted.value / self.measured.value


@dataclass(frozen=True)
class Row:
    """A step on `gpus`, in seconds, and how much more that is than with per-device BN, as a fraction of it."""

    gpus: int
    span: str
    ranks: int
    algorithm: Algorithm
    seconds: Spread
    overhead: Spread
    statistics: float  # of the seconds, SyncBN's collectives
    gradients: float  # of the seconds, what of the gradients' collectives is not hidden


def checks(measured: Measured) -> list[Check]:
    """Each world at hand, predicted from its messages and from its ranks' steps by themselves."""

    def statement(draw: Draw) -> dict[tuple[int, str, str], float]:
        found = {}
        for world in measured.worlds:
            if world.ranks == 1:
                continue
            links, compute = draw.links_at(world), draw.compute(world)
            net = network("ring", links, links, world.ranks)
            predicted = [
                step(measured.work, compute, net, world.ranks, span).seconds for span in (1, world.ranks)
            ]
            taken = [draw.median(world.steps[norm]) for norm in ("bn", "sync")]
            for what, (bn, sync) in (("predicted", predicted), ("measured", taken)):
                for name, seconds in zip(CHECKED, (bn, sync, sync - bn), strict=True):
                    found[world.ranks, name, what] = seconds
        return found

    found = spread(measured, statement)
    return [
        Check(ranks, name, value, found[ranks, name, "measured"])
        for (ranks, name, what), value in found.items()
        if what == "predicted"
    ]


def extrapolate(measured: Measured, cluster: Cluster) -> list[Row]:
    """Steps of the measured device, on the measured links or on given ones."""

    def statement(draw: Draw) -> dict[tuple[int, str, Algorithm, str], float]:
        compute = draw.compute(measured.worlds[-1])
        return _steps(measured.work, compute, cluster, {a: _network(draw, a, cluster) for a in ALGORITHMS})

    return _rows(spread(measured, statement), cluster)


def extrapolate_given(work: Workload, compute: Compute, cluster: Cluster) -> list[Row]:
    """Steps of a given device on given links: no measurement, and so no interval."""
    nets = {a: _network(None, a, cluster) for a in ALGORITHMS}
    found = _steps(work, compute, cluster, nets)
    return _rows({key: Spread(value, value, value) for key, value in found.items()}, cluster)


def _network(draw: Draw | None, algorithm: Algorithm, cluster: Cluster) -> Network:
    """Of a cluster whose nodes are joined as measured, or as given."""
    within: Mapping[Kind, Link] | None = _both(cluster.within)
    between: Mapping[Kind, Link] | None = _both(cluster.between)
    if within is None or between is None:
        assert draw is not None
        near, far = draw.links(algorithm)
        within = within or near
        between = between or far or near  # one node at hand: others are taken to be joined like its ranks
    return network(algorithm, within, between, cluster.node)


def links_of(measured: Measured | None, cluster: Cluster) -> dict[str, Any]:
    """The links that predictions rest on, as JSON: by algorithm, place and kind of collective."""
    draw = None if measured is None else measured.all_rounds
    found: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        net = _network(draw, algorithm, cluster)
        found[algorithm] = {
            place: {each.kind: _numbers(getattr(each, place)) for each in (net.all_gather, net.all_reduce)}
            for place in ("within", "between")
        }
    return found


def _numbers(link: Link) -> dict[str, float | None]:
    return {
        "alpha": link.alpha,
        "beta": link.beta if math.isfinite(link.beta) else None,
        "call": link.call,
    }


def _both(link: Link | None) -> dict[Kind, Link] | None:
    return None if link is None else {"all_gather": link, "all_reduce": link}


def _steps(
    work: Workload, compute: Compute, cluster: Cluster, nets: Mapping[Algorithm, Network]
) -> dict[tuple[int, str, Algorithm, str], float]:
    found: dict[tuple[int, str, Algorithm, str], float] = {}
    for gpus in sizes_up_to(cluster.most):
        for algorithm, net in nets.items():
            alone = step(work, compute, net, gpus).seconds
            for span in SPANS:
                taken = step(work, compute, net, gpus, cluster.ranks(span, gpus))
                key = (gpus, span, algorithm)
                found[*key, "seconds"] = taken.seconds
                found[*key, "overhead"] = taken.seconds / alone - 1
                found[*key, "statistics"] = taken.statistics
                found[*key, "gradients"] = taken.gradients
    return found


def _rows(found: Mapping[tuple[int, str, Algorithm, str], Spread], cluster: Cluster) -> list[Row]:
    return [
        Row(
            gpus,
            span,
            cluster.ranks(span, gpus),
            algorithm,
            value,
            found[gpus, span, algorithm, "overhead"],
            found[gpus, span, algorithm, "statistics"].value,
            found[gpus, span, algorithm, "gradients"].value,
        )
        for (gpus, span, algorithm, what), value in found.items()
        if what == "seconds"
    ]
