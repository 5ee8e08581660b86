"""Real gloo worlds for tests: call a function on every rank and get what each returned."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnbench.launch import Place

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bnbench.training.run"])
SECONDS = 120


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` on each of `size` ranks, one thread each; its results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe()
            place = Place(rank, size, rank, size)
            process = CONTEXT.Process(
                target=_rank,
                args=(place, str(Path(folder) / "store"), theirs, function, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            results = []
            for rank, pipe in enumerate(pipes):
                assert pipe.poll(SECONDS), f"rank {rank} of {size} gave no answer in {SECONDS} s"
                results.append(pickle.loads(pipe.recv_bytes()))
            for rank, (_value, error) in enumerate(results):
                assert error is None, f"rank {rank}: {error}"
            return [value for value, _ in results]
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()


def _rank(place: Place, store: str, pipe: Any, function: Callable[..., Any], arguments: Any) -> None:
    import torch

    from bnbench.training.world import World

    try:
        torch.set_num_threads(1)
        world = World.join(place, "cpu", store)
        # Plain pickle: the pipe's own would share tensors' memory, which ends with this process.
        pipe.send_bytes(pickle.dumps((function(world, *arguments), None)))
        world.leave()
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))
