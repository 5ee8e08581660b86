"""Real gloo worlds for tests: call a function on every rank and get what each returned."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnbench.launch import Place

CONTEXT = multiprocessing.get_context("forkserver")
# The last two are what test modules import: two seconds less for every world.
CONTEXT.set_forkserver_preload(["bnbench.training.run", "hypothesis", "pytest"])
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


class WarmWorld:
    """Ranks that stay up from call to call, for many short ones: `call` is `on_ranks` on them.

    What a function raises is raised here and leaves the world as it is: it must be raised on every rank, or
    the next call waits for a rank that waits for another.
    """

    def __init__(self, size: int, seconds: float = SECONDS) -> None:
        self.size, self.seconds = size, seconds

    def __enter__(self) -> WarmWorld:
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._processes = [], []
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            place = Place(rank, self.size, rank, self.size)
            store = str(Path(self._folder.name) / "store")
            process = CONTEXT.Process(target=_serve, args=(place, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(self.seconds), f"rank {rank} of {self.size} gave no answer in {self.seconds} s"
            results.append(pickle.loads(pipe.recv_bytes()))
        for rank, (_value, error) in enumerate(results):
            assert error is None, f"rank {rank}: {error}"
        return [value for value, _ in results]

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(place: Place, store: str, pipe: Any) -> None:
    import torch

    from bnbench.training.world import World

    torch.set_num_threads(1)
    gc.freeze()  # as a rank does: each run begins with a collection
    world = World.join(place, "cpu", store)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:  # the other end is closed: no more calls
            break
        try:
            answer = (function(world, *arguments), None)
        except BaseException:
            answer = (None, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    world.leave()


def _rank(place: Place, store: str, pipe: Any, function: Callable[..., Any], arguments: Any) -> None:
    import torch

    from bnbench.training.world import World

    try:
        torch.set_num_threads(1)
        world = World.join(place, "cpu", store)
        # Plain pickle: the pipe's own would share tensors' memory, which ends with this process.
        pipe.send_bytes(pickle.dumps((function(world, *arguments), None)))
        world.gathered(
            None
        )  # a function without collectives may be through before another rank has connected
        world.leave()
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))
