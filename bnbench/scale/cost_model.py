"""What a training step costs on many GPUs, by the alpha-beta model: SyncBN's collectives, DDP's gradients. No torch.

A collective of k ranks takes s steps of `alpha` seconds, one after another, and moves its bytes at `beta` bytes a
second (Hockney 1994; for collectives Thakur, Rabenseifner & Gropp 2005, IJHPCA 19(1)):

    all_gather of m bytes from each rank:   call + s alpha + (k - 1) m / beta
    all_reduce of m bytes on each rank:     call + 2 s alpha + 2 (k - 1) / k m / beta
    ring: s = k - 1;   tree: s = ceil(log2 k)

`call` is what a collective costs whatever its ranks, such as its launch; 0 in the textbook. The tree is one that moves
no more bytes than the ring (recursive doubling; Rabenseifner's all_reduce), so in this model it is never slower.
Over n nodes n - 1 steps of the ring and ceil(log2 n) of the tree go between nodes, as NCCL's own model counts them
(src/graph/tuning.cc), and the slowest link on the way sets beta.

SyncBN adds to each of L layers, of C channels, an all_gather of 4 (2 C + 1) bytes forward (mean, variance, count) and
an all_reduce of 8 C bytes backward (two sums). The next layer waits for each, so all of it is on the critical path:
latency-bound, it grows with the number of layers rather than of channels. Gradients wait for the end of the step only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ring", "tree"]
Kind = Literal["all_gather", "all_reduce"]
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "tree")
KINDS: tuple[Kind, ...] = ("all_gather", "all_reduce")
# torch's DDP: a small first bucket, so that communication starts early.
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
# A convolution's backward pass is two of its forward passes: for its input, and for its weight.
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Link:
    """What joins two ranks: seconds a step, bytes a second, and seconds of any collective over it."""

    alpha: float
    beta: float
    call: float = 0.0


@dataclass(frozen=True)
class Collective:
    """One kind of collective over consecutive ranks, `node` of them on each node."""

    kind: Kind
    algorithm: Algorithm
    within: Link
    between: Link
    node: int

    def seconds(self, ranks: int, payload: float) -> float:
        """Of one with `payload` bytes of each rank; 0 for a rank by itself."""
        if ranks == 1:
            return 0.0
        inner, outer = steps(self.kind, self.algorithm, ranks, self.node)
        used = [link for link, count in ((self.within, inner), (self.between, outer)) if count]
        slowest = min(link.beta for link in used)
        waiting = used[0].call + inner * self.within.alpha + outer * self.between.alpha
        return waiting + traffic(self.kind, ranks) * payload / slowest

    def total(self, ranks: int, payloads: Sequence[int]) -> float:
        """Of one after another: their sum, since each is linear in its payload."""
        return len(payloads) * self.seconds(ranks, sum(payloads) / max(1, len(payloads)))


def steps(kind: Kind, algorithm: Algorithm, ranks: int, node: int) -> tuple[int, int]:
    """Steps within and between nodes."""
    nodes = -(-ranks // node)
    if algorithm == "ring":
        inner, outer = ranks - nodes, nodes - 1
    else:
        inner, outer = _doublings(min(ranks, node)), _doublings(nodes)
    phases = 2 if kind == "all_reduce" else 1
    return phases * inner, phases * outer


def _doublings(count: int) -> int:
    return (count - 1).bit_length()


def traffic(kind: Kind, ranks: int) -> float:
    """Payloads that pass a link: below 2 for an all_reduce, however many ranks."""
    return ranks - 1 if kind == "all_gather" else 2 * (ranks - 1) / ranks


@dataclass(frozen=True)
class Network:
    """The collectives that a step makes."""

    all_gather: Collective
    all_reduce: Collective


def network(
    algorithm: Algorithm, within: Mapping[Kind, Link], between: Mapping[Kind, Link], node: int
) -> Network:
    gather, reduce = (Collective(kind, algorithm, within[kind], between[kind], node) for kind in KINDS)
    return Network(gather, reduce)


@dataclass(frozen=True)
class Workload:
    """What a model sends: the channels of each layer that would synchronize, and its gradients in bytes."""

    channels: tuple[int, ...]
    gradient_bytes: int

    @property
    def forward_bytes(self) -> list[int]:
        return [4 * (2 * c + 1) for c in self.channels]

    @property
    def backward_bytes(self) -> list[int]:
        return [8 * c for c in self.channels]

    @property
    def buckets(self) -> list[float]:
        """Bytes of each all_reduce of gradients."""
        rest = self.gradient_bytes - FIRST_BUCKET
        if rest <= 0:
            return [self.gradient_bytes]
        return [FIRST_BUCKET, *[BUCKET] * (rest // BUCKET), *([rest % BUCKET] if rest % BUCKET else [])]


@dataclass(frozen=True)
class Compute:
    """A step on a device by itself, in seconds: with per-device BN, and what SyncBN's own arithmetic takes more.

    `overlaps`: gradients travel while the backward pass computes, as on GPUs. Where those that compute must also send,
    on a CPU whose cores are all busy, they do not.
    """

    step: float
    extra: float = 0.0
    overlaps: bool = True


@dataclass(frozen=True)
class Step:
    """The parts of a step, in seconds."""

    compute: float
    arithmetic: float  # SyncBN's own
    statistics: float  # SyncBN's collectives
    gradients: float  # what the backward pass does not hide of their all_reduce

    @property
    def seconds(self) -> float:
        return self.compute + self.arithmetic + self.statistics + self.gradients


def step(work: Workload, compute: Compute, net: Network, world: int, span: int = 1) -> Step:
    """A step of `world` ranks, `span` of which share statistics; 1: per-device BN."""
    forward = net.all_gather.total(span, work.forward_bytes)
    backward = net.all_reduce.total(span, work.backward_bytes)
    extra = compute.extra if span > 1 else 0.0
    passing = BACKWARD_SHARE * (compute.step + extra) + backward
    return Step(
        compute.step,
        extra,
        forward + backward,
        exposed(work.buckets, net.all_reduce, world, passing if compute.overlaps else 0.0),
    )


def exposed(buckets: list[float], reduce: Collective, world: int, passing: float) -> float:
    """What is left of the gradients' all_reduce once a backward pass of `passing` seconds is over.

    Gradients come evenly over the backward pass; a bucket is sent when it is full and the one before it is through. So
    at least the last one is left.
    """
    total, filled, end = sum(buckets), 0.0, 0.0
    for size in buckets:
        filled += size
        end = max(end, passing * filled / total) + reduce.seconds(world, size)
    return end - passing


def sizes_up_to(most: int) -> list[int]:
    """Worlds of 1, 2, 4, ... GPUs."""
    return [2**n for n in range(int(math.log2(most)) + 1)]
