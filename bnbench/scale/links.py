"""Interconnects by name, each with what its numbers are and where they come from. No torch.

Latencies are those that NCCL plans with, for small messages; a collective's measured time differs by machine. Rates of
network ports are the wire's: a collective reaches less. What no source tells is marked unverified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bnbench.suggest import unknown

from .cost_model import Link

TUNING = "NCCL 2.30 src/graph/tuning.cc (ring, LL protocol)"
TOPOLOGY = "NCCL 2.30 src/graph/topo.h"
CALL = 6.6e-6  # the same table's base latency of a ring


@dataclass(frozen=True)
class Preset:
    link: Link
    what: str
    source: str


def _nvlink(each: float, links: int) -> Link:
    return Link(0.6e-6, each * links * 1e9, CALL)


def _port(gigabits: float, alpha: float = 2.7e-6) -> Link:
    return Link(alpha, gigabits / 8 * 1e9, CALL)


_TCP = "TCP's 20 us: Hurwitz & Feng, Hot Interconnects 2003"
PRESETS: dict[str, Preset] = {
    "nvlink3": Preset(
        _nvlink(20.0, 12),
        "A100: 12 links, 240 GB/s each way that NCCL plans with (of 300)",
        f"{TOPOLOGY}, {TUNING}",
    ),
    "nvlink4": Preset(
        _nvlink(20.6, 18),
        "H100, H200: 18 links, 371 GB/s each way that NCCL plans with (of 450)",
        f"{TOPOLOGY}, {TUNING}",
    ),
    "nvlink5": Preset(
        _nvlink(40.1, 18),
        "B200: 18 links, 722 GB/s each way that NCCL plans with (of 900)",
        f"{TOPOLOGY}, {TUNING}",
    ),
    "pcie3": Preset(
        Link(1.0e-6, 12e9, CALL), "PCIe 3.0 x16, 12 GB/s that NCCL plans with", f"{TOPOLOGY}, {TUNING}"
    ),
    "hdr": Preset(_port(200), "InfiniBand HDR, a port of 200 Gb/s", f"IBTA's rate of 4 lanes; {TUNING}"),
    "ndr": Preset(_port(400), "InfiniBand NDR, a port of 400 Gb/s", f"IBTA's rate of 4 lanes; {TUNING}"),
    "eth100": Preset(_port(100, 20e-6), "100 GbE, TCP", f"IEEE 802.3; {_TCP} for 10 GbE, unverified for 100"),
    "eth25": Preset(_port(25, 20e-6), "25 GbE, TCP", f"IEEE 802.3; {_TCP} for 10 GbE, unverified for 25"),
    "eth10": Preset(_port(10, 20e-6), "10 GbE, TCP", f"IEEE 802.3; {_TCP}"),
}


def link_named(text: str) -> Link:
    """The link of `NAME`, or of `COUNTxNAME`: that many ports or rails side by side, which multiply the rate alone.

    Raises ValueError for an unknown name.
    """
    count, name = re.fullmatch(r"(?:(\d+)x)?(.*)", text).groups()  # type: ignore[union-attr]
    if name not in PRESETS:
        raise ValueError(unknown("--interconnect", name, PRESETS))
    if count is not None and int(count) < 1:
        raise ValueError(f"--interconnect={text}: the number of ports must be at least 1")
    link = PRESETS[name].link
    return replace(link, beta=link.beta * int(count or 1))


def interconnect_named(text: str) -> tuple[Link | None, Link]:
    """The links within a node, None where it is left to be measured, and between nodes: `[WITHIN,]BETWEEN`."""
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or "" in parts:
        raise ValueError(f"--interconnect={text}: give BETWEEN, or WITHIN,BETWEEN, such as nvlink4,8xndr")
    links = [link_named(part) for part in parts]
    return (links[0] if len(links) == 2 else None), links[-1]
