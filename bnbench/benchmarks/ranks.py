"""The norms that span ranks, on real gloo ranks of this machine: collectives counted, calls timed."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .contenders import BN, contenders
from .counts import collectives
from .timing import calls_a_visit, interleave, keep_freed_memory, summary, wall_time

if TYPE_CHECKING:
    from .norms import Settings

TIMED = (
    "bn",
    "syncbn",
    "brn",
    "evonorm_b0",
)  # of the kinds with a process group, those with code of their own


def measure_on_ranks(settings: Settings) -> dict[str, Any]:
    """`measure_as_rank` on `settings.ranks` fresh processes; what rank 0 found."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        # forkserver: a server that has torch imported already (as in our tests) serves again.
        mp.start_processes(_rank, (settings, folder), nprocs=settings.ranks, start_method="forkserver")
        return json.loads((Path(folder) / "found.json").read_text())


def measure_as_rank(settings: Settings) -> dict[str, Any]:
    """Collectives of every kind, by contender; times of those that span ranks. Call it on every rank of a world.

    Always CPU tensors: gloo's are the collectives that this machine can count without a second GPU.
    """
    from .norms import build_steps

    settings = dataclasses.replace(settings, device="cpu")
    entrants = contenders(settings.shape, settings.kinds, dist.group.WORLD, peers=False)
    steps = build_steps(settings, entrants, seed=100 * dist.get_rank())
    found: dict[str, Any] = {"size": dist.get_world_size()}
    found["collectives"] = {name: collectives(step) for name, step in steps.items()}
    timed = {each.name: each for each in entrants if each.name == BN or each.kind in TIMED}
    steps = {name: step for name, step in steps.items() if name in timed}
    # Every rank makes the same calls, or they would wait for each other for ever.
    calls: list[Any] = [{name: calls_a_visit(step, wall_time) for name, step in steps.items()}]
    dist.broadcast_object_list(calls)
    pairs = interleave(
        steps, dict.fromkeys(steps, BN), settings.rounds, calls=calls[0], before=lambda: dist.barrier()
    )
    found["rows"] = {name: {"kind": timed[name].kind, **summary(each)} for name, each in pairs.items()}
    return found


def _rank(rank: int, settings: Settings, folder: str) -> None:
    # Not by training's World: that would import Lightning for it.
    torch.set_num_threads(settings.threads)
    if settings.memory == "kept":
        keep_freed_memory()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(Path(folder) / "store"), settings.ranks)
    dist.init_process_group("gloo", rank=rank, world_size=settings.ranks, store=store)
    try:
        found = measure_as_rank(settings)
        if rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()
