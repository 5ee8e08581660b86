"""What each normalization costs: time, memory kept for the backward pass, collectives; as ratios in one run."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bnbench.norms import NORMS

from .contenders import TARGET_SHAPE, Contender, batch, contenders
from .counts import saved_bytes
from .timing import Step, interleave, keep_freed_memory, summary, wall_time

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ALL = tuple(NORMS)


@dataclass(frozen=True)
class Settings:
    """`memory`: "kept", the allocator keeps what it frees, or "system", as the system's allocator likes it."""

    shape: tuple[int, ...] = TARGET_SHAPE
    kinds: tuple[str, ...] = ALL
    threads: int = 1
    rounds: int = 20
    memory_format: str = "contiguous"
    dtype: str = "fp32"
    device: str = "cpu"
    ranks: int = 2
    memory: str = "kept"

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise ValueError(
                f"--shape={','.join(map(str, self.shape))} must be N,C,H,W, four numbers of at least 1"
            )
        _, c, h, w = self.shape
        if h * w == 1 or c == 1:
            raise ValueError(
                f"--shape={','.join(map(str, self.shape))}: kinds with statistics over pixels or channels "
                "need more than one of each"
            )
        unknown = [kind for kind in self.kinds if kind not in NORMS and "." not in kind]
        if unknown:
            raise ValueError(
                f"--kinds={','.join(unknown)} is unknown; known: {', '.join(NORMS)}, or a dotted path"
            )
        for name in ("threads", "rounds", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device=cuda: torch sees no GPU here; use --device cpu")

    @property
    def judged(self) -> bool:
        """Whether the targets hold for these settings."""
        return (self.shape, self.dtype, self.memory_format, self.device, self.memory) == (
            TARGET_SHAPE, "fp32", "contiguous", "cpu", "kept",
        )  # fmt: skip

    @property
    def clock(self) -> str:
        """Waiting is part of a GPU's and of several threads' work; of one thread's, only others' turns are."""
        return "CPU time" if self.device == "cpu" and self.threads == 1 else "wall time"

    @property
    def variant(self) -> str:
        """What differs from the default, for the name of a results file; empty for the default."""
        standard = Settings()
        parts = ["x".join(map(str, self.shape))] if self.shape != standard.shape else []
        for name in ("dtype", "memory_format", "device", "memory"):
            if getattr(self, name) != getattr(standard, name):
                parts.append(str(getattr(self, name)))
        return "-".join(parts + ([f"{self.threads}-threads"] if self.threads != standard.threads else []))


def measure(settings: Settings) -> dict[str, Any]:
    """Every contender's milliseconds, ratio to its reference, saved bytes and collectives, with verdicts.

    The kinds that span ranks are measured again on `settings.ranks` gloo ranks on this machine's CPUs.
    """
    from .ranks import measure_on_ranks

    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    kept = settings.memory == "kept" and keep_freed_memory()
    load = [os.getloadavg()[0]]
    try:
        rows = _measure_here(settings)
    finally:
        torch.set_num_threads(threads)
    on_ranks = measure_on_ranks(settings) if settings.ranks > 1 else None
    load.append(os.getloadavg()[0])
    for name, row in rows.items():
        row["collectives"] = on_ranks["collectives"].get(name) if on_ranks else None
    result: dict[str, Any] = {
        "settings": {**asdict(settings), "memory_kept": kept, "clock": settings.clock},
        "load_before_and_after": [round(value, 2) for value in load],
        "timm": _version("timm"),
        "rows": rows,
        "ranks": on_ranks,
    }
    if settings.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    return result


def build_steps(settings: Settings, entrants: Iterable[Contender], seed: int = 0) -> dict[str, Step]:
    """A step for each contender, all of them over the same input and, by shape and dtype, the same gradient."""
    dtype, layout = DTYPES[settings.dtype], FORMATS[settings.memory_format]
    autocast = None if dtype == torch.float32 else dtype
    inputs: dict[int, Tensor] = {}
    gradients: dict[tuple[Any, ...], Tensor] = {}
    steps = {}
    for each in entrants:
        extra = each.extra_images
        if extra not in inputs:
            n, *rest = settings.shape
            x = batch((n + extra, *rest), dtype, layout, seed, settings.device)
            inputs[extra] = x.requires_grad_()
        layer = each.build().to(settings.device)
        step = Step(layer, inputs[extra], (), autocast)
        dys = []
        for y in step.forward():
            key = (tuple(y.shape), y.dtype, y.stride())
            if key not in gradients:
                generator = torch.Generator(settings.device).manual_seed(seed + 1)
                fresh = torch.randn(y.shape, generator=generator, device=settings.device).to(y)
                gradients[key] = torch.empty_like(y).copy_(fresh).detach()
            dys.append(gradients[key])
        step.dys = tuple(dys)
        steps[each.name] = step
    return steps


def verdict(row: dict[str, Any], ratio_target: float | None, saved_target: float | None) -> dict[str, Any]:
    """Targets and whether they are met: "open" where the ratio's interval has the target inside it."""
    found: dict[str, Any] = {"ratio_target": ratio_target, "saved_target": saved_target}
    if ratio_target is not None:
        low, high = row["ratio_interval"]
        found["ratio_met"] = "yes" if high <= ratio_target else "no" if low > ratio_target else "open"
    if saved_target is not None:
        found["saved_met"] = "yes" if row["saved_inputs"] <= saved_target else "no"
    return found


def _measure_here(settings: Settings) -> dict[str, dict[str, Any]]:
    entrants = contenders(settings.shape, settings.kinds)
    steps = build_steps(settings, entrants)
    input_bytes = settings.shape[0] * next(iter(steps.values())).x[0].nbytes
    rows: dict[str, dict[str, Any]] = {}
    for each in entrants:
        step, saved = steps[each.name], saved_bytes(steps[each.name])
        rows[each.name] = {
            "kind": each.kind,
            "maker": each.maker,
            "reference": each.reference,
            "dtype": str(step.dys[0].dtype).removeprefix("torch."),
            "saved_bytes": saved,
            "saved_inputs": saved["all"] / input_bytes,
        }
    references = {each.name: each.reference for each in entrants}
    clock = time.process_time if settings.clock == "CPU time" else wall_time
    pairs = interleave(steps, references, settings.rounds, clock)
    for each in entrants:
        row = rows[each.name]
        row |= summary(pairs[each.name])
        if settings.judged:
            row |= verdict(row, each.ratio_target, each.saved_target)
    return rows


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
