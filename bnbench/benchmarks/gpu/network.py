"""Part 2: ResNet-50 in bf16 and channels_last, eager and compiled, by kind: images/s, MFU, the norms' floor."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from bnbench.models import build_model
from bnbench.norms import VirtualBatchNet, swap_norms
from bnbench.norms.base import Norm
from bnbench.training.peaks import peak_flops_per_s

from .floors import PASSES, copy_bandwidth
from .sizes import Sizes

CONTROL = "none"
OPTIONS: dict[str, dict[str, Any]] = {"brn": {"warmup": 0, "r_end": 0, "d_end": 0}}


class TrainingStep:
    """One step as a bare loop takes it: forward under autocast, loss, backward, SGD; on one batch on the device."""

    def __init__(self, kind: str, sizes: Sizes, compiled: bool = False) -> None:
        torch.manual_seed(0)
        options = OPTIONS.get(kind, {}) | ({"ghosts": max(1, sizes.images // 32)} if kind == "ghost" else {})
        model: nn.Module = build_model("resnet50", 1000)
        swap_norms(model, kind, **options)
        shape = (3, sizes.pixels, sizes.pixels)
        if kind == "vbn":
            model = VirtualBatchNet(model, torch.randn(max(2, sizes.images // 8), *shape))
        layout: Any = {"memory_format": torch.channels_last}
        self.model = model.to(sizes.device, **layout)
        if compiled:
            torch.compiler.reset()
            self.model.compile(backend=sizes.compiler)
        self.images = torch.randn(sizes.images, *shape, device=sizes.device).to(**layout)
        self.labels = torch.randint(1000, (sizes.images,), device=sizes.device)
        self.device, self.in_bf16 = sizes.device, sizes.on_gpu
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.in_bf16)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


def measure(sizes: Sizes, is_late: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    bandwidth = copy_bandwidth(sizes.copy_bytes, sizes.device)
    steps: dict[str, TrainingStep] = {}
    left_out: list[str] = []
    for kind in sizes.network_kinds:
        if is_late():
            left_out.append(kind)
        else:
            steps[kind] = TrainingStep(kind, sizes)
    with FlopCounterMode(display=False) as counter:
        next(iter(steps.values()))()  # convolutions and matrix products: the same whatever the norm
    flops = counter.get_total_flops()
    name = torch.cuda.get_device_name() if sizes.on_gpu else None
    peak = peak_flops_per_s(name, "bf16", False)
    found: dict[str, Any] = {"flops_per_step": flops, "peak_flops_per_s": peak, "left_out": left_out}
    rows = _time(steps, sizes, is_late)
    for kind, row in rows.items():
        row["norm_bytes"] = PASSES[kind] * norm_input_bytes(steps[kind])
        row["floor_ms"] = 1000 * row["norm_bytes"] / bandwidth
        row["peak_bytes"] = _peak_memory(steps[kind], sizes)
    del steps
    found["eager"] = rows
    found["compiled"] = {}
    for kind in sizes.compiled:
        if is_late():
            found["left_out"].append(f"{kind} compiled")
            continue
        step = TrainingStep(kind, sizes, compiled=True)
        begun = Timer("step()", globals={"step": step}).timeit(1).median
        found["compiled"] |= _time({kind: step}, sizes)
        found["compiled"][kind]["first_step_s"] = begun
        del step
    for row in [*rows.values(), *found["compiled"].values()]:
        row["images_per_s"] = 1000 * sizes.images / row["ms"]
        row["mfu"] = None if peak is None else 1000 * flops / row["ms"] / peak
    control = rows.get(CONTROL)
    for kind, row in rows.items():
        if control is not None and kind != CONTROL:
            row["norm_ms"] = row["ms"] - control["ms"]
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{'':12} {'ms/step':>8} {'[range]':>16} {'images/s':>9} {'MFU':>6} {'norms ms':>9} {'floor ms':>9} {'GiB':>6}"
    ]
    for how in ("eager", "compiled"):
        for kind, row in result[how].items():
            low, high = row["range_ms"]
            mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
            more = [
                f"{row[key]:9.1f}" if row.get(key) is not None else " " * 9 for key in ("norm_ms", "floor_ms")
            ]
            memory = f"{row['peak_bytes'] / 2**30:6.1f}" if row.get("peak_bytes") else ""
            label = kind if how == "eager" else f"{kind} *"
            lines.append(
                f"{label:12} {row['ms']:8.1f} {f'[{low:.1f}, {high:.1f}]':>16} {row['images_per_s']:9.0f} {mfu:>6} "
                f"{' '.join(more)} {memory}".rstrip()
            )
    lines.append(
        "*: compiled. norms: what a step takes more than without any; floor: passes at a copy's bandwidth."
    )
    lines += [f"left out for time: {what}" for what in result["left_out"]]
    return "\n".join(lines)


def _time(
    steps: dict[str, TrainingStep], sizes: Sizes, is_late: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, Any]]:
    """Blocks of steps in turns, so that a clock that drifts hits all alike; one round if there is time for no more."""
    timers = {name: Timer("step()", globals={"step": step}) for name, step in steps.items()}
    for timer in timers.values():
        timer.timeit(1)  # cuDNN, the allocator
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(sizes.network_blocks):
        for name, timer in timers.items() if number == 0 or not is_late() else ():
            blocks[name].append(1000 * timer.timeit(sizes.network_steps).median)
    return {
        name: {"ms": statistics.median(times), "range_ms": [min(times), max(times)]}
        for name, times in blocks.items()
    }


def norm_input_bytes(step: TrainingStep) -> int:
    """Of all norms' inputs in a forward pass, as they arrive under autocast."""
    total = 0

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal total
        total += args[0].nbytes

    handles = [m.register_forward_pre_hook(add) for m in step.model.modules() if isinstance(m, Norm)]
    with torch.no_grad(), step.autocast():
        step.model(step.images)
    for handle in handles:
        handle.remove()
    return total


def _peak_memory(step: TrainingStep, sizes: Sizes) -> int | None:
    """Bytes that tensors had at most in a step, beside what other networks hold here."""
    if not sizes.on_gpu:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before
