"""Part 3: each kind at ResNet-50's shapes beside torch's own layers, as a share of what a copy reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bnbench.benchmarks.contenders import contenders
from bnbench.benchmarks.norms import Settings, build_steps
from bnbench.benchmarks.timing import interleave, summary

from .floors import PASSES, copy_bandwidth
from .sizes import Sizes

LAYOUTS = ("channels_last", "contiguous")
MAKERS = ("bnbench", "torch", "torchvision")
REFERENCES = {"torch BatchNorm2d": "bn", "torchvision FrozenBN": "frozen"}  # others are of one image


def measure(sizes: Sizes, is_late: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Milliseconds and share of the copy's bandwidth by layout, shape and layer; bf16 on a GPU, as it trains there."""
    bandwidth = copy_bandwidth(sizes.copy_bytes, sizes.device)
    found: dict[str, Any] = {"copy_bytes_per_s": bandwidth, "by_layout": {}, "left_out": []}
    for layout in LAYOUTS:
        rows: dict[str, dict[str, Any]] = {}
        for channels, pixels in sizes.shapes:
            shape = (sizes.images, channels, pixels, pixels)
            if is_late():
                found["left_out"].append(f"{layout} {shape}")
                continue
            rows["x".join(map(str, shape))] = _measure_shape(shape, layout, sizes, bandwidth)
        found["by_layout"][layout] = rows
    return found


def _measure_shape(
    shape: tuple[int, ...], layout: str, sizes: Sizes, bandwidth: float
) -> dict[str, dict[str, Any]]:
    dtype = "bf16" if sizes.on_gpu else "fp32"
    settings = Settings(
        shape=shape, kinds=sizes.kinds, memory_format=layout, dtype=dtype, device=sizes.device, ranks=1
    )
    entrants = [each for each in contenders(shape, sizes.kinds) if each.maker in MAKERS]
    steps = build_steps(settings, entrants)
    references = {each.name: each.reference for each in entrants}
    pairs = interleave(steps, references, sizes.rounds, calls=dict.fromkeys(steps, sizes.calls))
    rows = {}
    for each in entrants:
        step, row = steps[each.name], summary(pairs[each.name])
        passes = PASSES[REFERENCES.get(each.name, "gn") if each.kind == "reference" else each.kind]
        floor_ms = 1000 * passes * step.x.nbytes / bandwidth
        rows[each.name] = {
            "kind": each.kind,
            "reference": each.reference,
            "passes": passes,
            "kernel": getattr(step.layer, "kernel", None),
            "floor_ms": floor_ms,
            **row,
            "share_of_copy": floor_ms / float(str(row["total_ms"])),
        }
    if sizes.on_gpu:
        torch.cuda.empty_cache()
    return rows


def table(result: dict[str, Any]) -> str:
    """By layer: its time over all shapes, each once, and the share of the copy's bandwidth that this is."""
    lines = [f"a copy: {result['copy_bytes_per_s'] / 1e12:.2f} TB/s, read and written"]
    for layout, shapes in result["by_layout"].items():
        lines.append(f"{layout:26} {'ms':>8} {'floor ms':>9} {'of a copy':>10}   least and most; ratio to")
        for name in next(iter(shapes.values()), {}):
            rows = [row[name] for row in shapes.values() if name in row]
            total, floor = sum(row["total_ms"] for row in rows), sum(row["floor_ms"] for row in rows)
            shares = [row["share_of_copy"] for row in rows]
            own = rows[0]["reference"]
            others = sum(
                shape[own]["total_ms"] for shape in shapes.values() if own in shape and name in shape
            )
            ratio = "" if own == name else f"{total / others:.2f} {own}"
            spread = f"{min(shares):.0%} {max(shares):.0%}"
            lines.append(f"  {name:24} {total:8.2f} {floor:9.2f} {floor / total:10.0%}   {spread}  {ratio}")
    lines += [f"left out for time: {what}" for what in result["left_out"]]
    return "\n".join(lines)
