"""How this process was started: by itself, or as one rank of a world that torchrun or srun made.

Read from the environment alone, so that a wrong world is refused before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """One rank's place in its world."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    origin: Literal["bnbench", "torchrun", "srun"] = "bnbench"

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def place_given(env: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place in a world that something else started; None if bnbench is to start one."""
    if all(key in env for key in TORCHRUN):
        rank, size, local_rank, local_size = (int(env[key]) for key in TORCHRUN[:4])
        return Place(rank, size, local_rank, local_size, "torchrun")
    # A batch script's own shell has no step tasks; a step of one task by that name is somebody's prompt.
    size = int(env.get("SLURM_STEP_NUM_TASKS", "0"))
    prompt = size == 1 and env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in env and size and not prompt:
        nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
        local_rank = int(env.get("SLURM_LOCALID", "0"))
        return Place(int(env["SLURM_PROCID"]), size, local_rank, size // nodes, "srun")
    return None


def check_world(place: Place | None, devices: int, num_nodes: int) -> None:
    """Raise ValueError, with the numbers and the line to change, if the config asks for another world."""
    if place is None:
        if num_nodes > 1:
            raise ValueError(
                f"trainer.num_nodes={num_nodes}: one process cannot start ranks on other nodes; start bnbench "
                "on each of them with torchrun or srun, or set trainer.num_nodes=1"
            )
    elif place.size != devices * num_nodes or place.local_size != devices:
        raise ValueError(
            f"{place.origin} started {place.size} rank(s), {place.local_size} on each of {place.nodes} node(s), "
            f"but the run asks for trainer.devices={devices} x trainer.num_nodes={num_nodes}: set "
            f"trainer.devices={place.local_size} trainer.num_nodes={place.nodes}, or start as many"
            + (f": #SBATCH --nodes={num_nodes} --ntasks-per-node={devices}" if place.origin == "srun" else "")
        )


def idle_tasks(devices: int, env: Mapping[str, str] = os.environ) -> str | None:
    """A line for a batch script that has tasks and starts bnbench without srun, so that no task is a rank."""
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if place_given(env) is not None or "SLURM_JOB_ID" not in env or tasks == 1:
        return None
    return (
        f"SLURM gave this job {tasks} tasks, and bnbench was started without srun: it starts its own {devices} "
        "rank(s) on this node; to make the tasks its ranks: srun bnbench train ..."
    )


def command(place: Place | None = None) -> list[str]:
    """The words that start `bnbench train` the way it was started here; what a place's host is called is not known."""
    if place is None or place.origin == "bnbench":
        return ["bnbench", "train"]
    if place.origin == "srun":
        return ["srun", "bnbench", "train"]
    meeting = ["--nnodes", str(place.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:PORT"]
    ranks = ["--nproc-per-node", str(place.local_size)]
    return ["torchrun", *(meeting if place.nodes > 1 else []), *ranks, "-m", "bnbench.train"]


def speaks(place: Place | None) -> bool:
    """Whether this process is the one that prints."""
    return place is None or place.rank == 0
