"""Part 1, across ranks: SyncBN of two gloo ranks that share the device, against fp64 and torch's own layer."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bnbench.benchmarks.timing import Step, interleave, summary
from bnbench.norms import BatchNorm2d, build_norm

from .agreement import distance, randomized, run
from .sizes import Sizes

RANKS = 2
TOLERANCE = 1e-5


def measure(sizes: Sizes) -> dict[str, Any]:
    """Distances from BN of the concatenated batch in fp64, for even and uneven splits, and times against torch's layer.

    NCCL takes no two ranks of one GPU, so the collectives are gloo's, through the host: the distances hold for any
    backend, the times are of this one.
    """
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (sizes, folder), nprocs=RANKS, start_method="forkserver")
        return json.loads((Path(folder) / "found.json").read_text())


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{name}: {found['distance']:.1e} from fp64 ({found['of']}){'' if found['passed'] else ' FAILED'}"
        for name, found in result["rows"].items()
    ]
    for name, row in (result.get("times") or {}).items():
        low, high = row["ratio_interval"]
        lines.append(
            f"{name}: {row['total_ms']:.3f} ms, {row['ratio']:.3f} [{low:.3f}, {high:.3f}] of torch's"
        )
    return "\n".join(lines)


def _rank(rank: int, sizes: Sizes, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(Path(folder) / "store"), RANKS)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=store)
    try:
        found = _as_rank(rank, sizes)
        if rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _as_rank(rank: int, sizes: Sizes) -> dict[str, Any]:
    n, c, h, w = sizes.shape
    layers: dict[str, Callable[[], nn.Module]] = {
        "syncbn": lambda: build_norm("syncbn", c, process_group=dist.group.WORLD)
    }
    if sizes.on_gpu:  # torch's refuses CPU tensors
        layers["torch"] = lambda: nn.SyncBatchNorm(c)
    rows = {}
    for name, build in layers.items():
        for split, first in {"even": n // 2, "uneven": n // 4}.items():
            rows[f"{name}, {split}"] = _compare(build, (n, c, h, w), first, rank, sizes.device)
    found: dict[str, Any] = {"rows": rows, "passed": all(row["passed"] for row in rows.values())}
    if sizes.on_gpu:
        x = torch.randn(n, c, h, w, device=sizes.device).requires_grad_()
        steps = {
            name: Step(build().to(sizes.device), x, (torch.randn_like(x),)) for name, build in layers.items()
        }
        pairs = interleave(steps, dict.fromkeys(steps, "torch"), 10, calls=dict.fromkeys(steps, 10))
        found["times"] = {name: summary(each) for name, each in pairs.items()}
    return found


def _compare(
    build: Callable[[], nn.Module], shape: tuple[int, ...], first: int, rank: int, device: str
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator) + 1
    dy = torch.randn(shape, generator=generator)
    mine = slice(0, first) if rank == 0 else slice(first, None)
    layer = randomized(build())
    whole = randomized(BatchNorm2d(shape[1])).double()
    exact = run(whole, x.double(), [dy.double()])
    found = run(copy.deepcopy(layer).to(device), x[mine].to(device), [dy[mine].to(device)])
    for name in ("d weight", "d bias"):  # DDP would add them up
        gradient = found[name].double().cpu()
        dist.all_reduce(gradient)
        found[name] = gradient
    distances = {
        name: distance(found[name], value[mine] if value.dim() == 4 else value)
        for name, value in exact.items()
    }
    of = max(distances, key=lambda name: distances[name])
    return {"passed": distances[of] <= TOLERANCE, "distance": distances[of], "of": of}
