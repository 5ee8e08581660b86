"""The world that is measured: joined where torchrun or srun started it, else started here, without torch till then."""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import Place, check_world, place_given

PRELOAD = ["bnbench.sweep.quiet", "bnbench.scale.measure"]
FOUND, PROBLEM = "found.json", "problem.txt"


def measure(config: RunConfig, rounds: int) -> dict[str, Any]:
    """What the ranks of `config.trainer` find; call it on every process of a world alike.

    Raises ValueError for a world that the configuration does not describe, and for what only a rank can see: too few
    GPUs, data that are not there. Raises RuntimeError if a rank ends without an answer.
    """
    place = place_given()
    check_world(place, config.trainer.devices, config.trainer.num_nodes)
    if place is not None:
        return _as_rank(place, config, rounds)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="bnbench-scale-") as folder:
        size = config.trainer.devices
        ranks: list[Any] = [
            context.Process(
                target=_started, args=(Place(rank, size, rank, size), config, rounds, folder), daemon=True
            )
            for rank in range(size)
        ]
        try:
            for rank in ranks:
                rank.start()
            _wait(ranks)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
                    rank.join()
        if (Path(folder) / PROBLEM).exists():
            raise ValueError((Path(folder) / PROBLEM).read_text())
        if not (Path(folder) / FOUND).exists():
            codes = ", ".join(str(rank.exitcode) for rank in ranks)
            raise RuntimeError(
                f"a rank ended without an answer (exit codes {codes}); what it printed says why"
            )
        found: dict[str, Any] = json.loads((Path(folder) / FOUND).read_text())
        return found


def _wait(ranks: list[Any]) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    while any(rank.is_alive() for rank in ranks):
        for rank in ranks:
            rank.join(0.1)
            if rank.exitcode:
                return


def _started(place: Place, config: RunConfig, rounds: int, folder: str) -> None:
    from bnbench.records import write_atomic

    try:
        found = _as_rank(place, config, rounds, str(Path(folder) / "store"))
    except ValueError as error:
        write_atomic(Path(folder) / PROBLEM, str(error).encode())  # any rank's: one is told
        return
    if place.rank == 0:
        write_atomic(Path(folder) / FOUND, json.dumps(found).encode())


def _as_rank(place: Place, config: RunConfig, rounds: int, store: str | None = None) -> dict[str, Any]:
    from bnbench.scale.measure import measure_as_rank
    from bnbench.training.world import World

    world = World.join(place, config.trainer.accelerator, store, config.trainer.collective_timeout)

    def say(line: str) -> None:
        if world.leads:
            print(f"scale: {line}", file=sys.stderr, flush=True)

    found = measure_as_rank(config, world, rounds, say)
    world.leave()
    return found
