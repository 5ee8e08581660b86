"""The fewest bytes that a norm moves through a device's memory in a training step, and what a copy reaches.

A pass reads or writes a tensor of the input's size once. Statistics over images must be there before the first image is
normalized, and a batch fits no cache: forward x twice and y once, backward x and dy twice and dx once. Statistics of
one image need it once: forward x and y, backward x, dy and dx. Parameters and statistics count nothing.
"""

from __future__ import annotations

import torch
from torch.utils.benchmark import Timer

BATCH, IMAGE = 3 + 5, 2 + 3
PASSES = {
    "bn": BATCH, "syncbn": BATCH, "ghost": BATCH, "brn": BATCH, "vbn": BATCH, "ws_bn": BATCH, "evonorm_b0": BATCH,
    "gn": IMAGE, "ln": IMAGE, "ln2d": IMAGE, "in": IMAGE, "frn": IMAGE, "evonorm_s0": IMAGE, "ws_gn": IMAGE,
    "none": IMAGE,  # gamma's gradient reads x
    "frozen": 2 + 2,  # its gamma is fixed
}  # fmt: skip


def copy_bandwidth(num_bytes: int, device: str) -> float:
    """Bytes read and written a second by a copy of `num_bytes` on the device: what passes can hope for."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    timer = Timer("target.copy_(source)", globals={"target": target, "source": source})
    timer.timeit(3)
    return 2 * num_bytes / timer.timeit(20).median
