"""Part 1: every kind on the device against fp64 on the CPU, in each memory format, in bf16 and compiled."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnbench.benchmarks.contenders import Contender, contenders
from bnbench.benchmarks.timing import Step
from bnbench.norms import Norm, fused

from .sizes import Sizes


@dataclass(frozen=True)
class Way:
    """How a layer is run on the device, and how far from fp64 it may end: ||found - exact|| / ||exact||."""

    name: str
    dtype: torch.dtype
    layout: torch.memory_format
    tolerance: float
    compiled: bool = False


# bf16 has 8 bits: its rounding alone leaves 2e-3, and sums of such values somewhat more.
WAYS = (
    Way("fp32", torch.float32, torch.contiguous_format, 1e-5),
    Way("fp32 channels_last", torch.float32, torch.channels_last, 1e-5),
    Way("bf16", torch.bfloat16, torch.contiguous_format, 1e-2),
    Way("bf16 channels_last", torch.bfloat16, torch.channels_last, 1e-2),
    Way("fp32 channels_last compiled", torch.float32, torch.channels_last, 1e-5, compiled=True),
)


GHOST = "ghost, k=4"  # one count stands for all


def measure(sizes: Sizes, is_late: Any = lambda: False) -> dict[str, Any]:
    """By layer and way: the largest distance from fp64, of which tensor, and whether that is `passed`."""
    rows: dict[str, dict[str, Any]] = {}
    for each in contenders(sizes.shape, sizes.kinds, peers=False):
        if (each.maker == "bnbench" and not each.name.startswith("ghost")) or each.name == GHOST:
            rows[each.name] = {way.name: _try(each, way, sizes) for way in WAYS}
    return {"rows": rows, "passed": all(found["passed"] for row in rows.values() for found in row.values())}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'distance from fp64 on CPU':22}" + "".join(f" {way.name:>28}" for way in WAYS)]
    for name, row in result["rows"].items():
        cells = []
        for found in row.values():
            distance = found.get("distance")
            by = " (Triton)" if "triton" in found.get("kernels", ()) else ""
            cells.append(f"{distance:.1e} {found['of']}{by}" if distance is not None else "error")
            cells[-1] += "" if found["passed"] else " FAILED"
        lines.append(f"{name:22}" + "".join(f" {cell:>28}" for cell in cells))
    for name, row in result["rows"].items():
        lines += [f"{name}, {way}: {found['error']}" for way, found in row.items() if found.get("error")]
    return "\n".join(lines)


def _try(each: Contender, way: Way, sizes: Sizes) -> dict[str, Any]:
    try:
        return _compare(each, way, sizes)
    except Exception as error:
        return {"passed": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def _compare(each: Contender, way: Way, sizes: Sizes) -> dict[str, Any]:
    layer = randomized(each.build())
    n, *rest = sizes.shape
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(n + each.extra_images, *rest, generator=generator) + 1).to(way.dtype)
    probe = copy.deepcopy(layer)(x.float())
    outputs = probe if isinstance(probe, tuple) else (probe,)
    dys = [torch.randn(y.shape, generator=generator).to(way.dtype) for y in outputs]
    exact = run(copy.deepcopy(layer).double(), x.double(), [dy.double() for dy in dys])
    on_device = copy.deepcopy(layer).to(sizes.device)
    by_choice = nullcontext() if way.compiled else fused.at_any_size()
    if way.compiled:
        torch.compiler.reset()
        on_device.compile(backend=sizes.compiler)
    with by_choice:
        found = run(
            on_device,
            x.to(sizes.device, memory_format=way.layout),
            [_laid_out(dy.to(sizes.device), way.layout) for dy in dys],
            None if way.dtype == torch.float32 else way.dtype,
        )
    distances = {name: distance(found[name], value) for name, value in exact.items()}
    of = max(distances, key=lambda name: distances[name])
    kept = found["y0"].is_contiguous(memory_format=way.layout)
    return {
        "passed": distances[of] <= way.tolerance and kept,
        "distance": distances[of],
        "of": of,
        "tolerance": way.tolerance,
        "kernels": sorted({m.kernel for m in on_device.modules() if isinstance(m, Norm)}),
        **({} if kept else {"error": f"the output is not {way.layout}"}),
    }


def randomized(layer: nn.Module) -> nn.Module:
    """`layer` with parameters that are not those of its start, gamma away from 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) / 4
            parameter.copy_(values + 1 if name.endswith("weight") and parameter.dim() == 1 else values)
    return layer


def run(
    layer: nn.Module, x: Tensor, dys: list[Tensor], autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Of one training step: outputs, gradients, buffers; and the output in evaluation mode after it."""
    step = Step(layer.train(), x.requires_grad_(), tuple(dys), autocast)
    ys = step.forward()
    # As the rest of a network would give them: of the output's own dtype.
    gradients = torch.autograd.grad(ys, step.inputs, [dy.to(y.dtype) for dy, y in zip(dys, ys, strict=True)])
    names = ["dx", *(name for name, p in layer.named_parameters() if p.requires_grad)]
    found = {f"y{n}": y for n, y in enumerate(ys)}
    found |= {f"d {name}" if name != "dx" else name: g for name, g in zip(names, gradients, strict=True)}
    found |= dict(layer.named_buffers())
    layer.eval()
    with torch.no_grad():
        found |= {f"eval {n}": y for n, y in enumerate(step.forward())}
    return found


def distance(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; inf where anything is not finite."""
    difference = (found.detach().double().cpu() - exact.detach().double().cpu()).norm()
    relative = float(difference / exact.detach().double().norm().clamp(min=1e-30))
    return relative if relative == relative else float("inf")


def _laid_out(dy: Tensor, layout: torch.memory_format) -> Tensor:
    return dy.contiguous(memory_format=layout) if dy.dim() == 4 else dy
