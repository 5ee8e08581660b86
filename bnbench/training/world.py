"""The ranks that train together, seen from one of them: device, process groups, agreement."""

from __future__ import annotations

import errno
import gc
import os
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment

from bnbench.launch import Place
from bnbench.records import Status

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
T = TypeVar("T")


# As torch says it without an exception of its own: of a CPU's, of a device that others fill, of CUDA's libraries.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class SetupError(ValueError):
    """A user's mistake that a rank found; raised on all of them, with nothing written yet."""


class World:
    """A joined world. Runs use it one after another; it keeps its process groups between them."""

    def __init__(
        self, place: Place, device: torch.device, backend: str, timeout: timedelta = COLLECTIVE_TIMEOUT
    ) -> None:
        self.place, self.device, self.backend, self.timeout = place, device, backend, timeout
        self.locked: Path | None = None  # the folder of the last run that its leader had the lock of
        self._groups: dict[int, Any] = {}

    @classmethod
    def join(
        cls,
        place: Place,
        accelerator: str,
        store_path: str | None = None,
        timeout: timedelta = COLLECTIVE_TIMEOUT,
    ) -> World:
        """Choose the device and connect to the other ranks.

        A world that bnbench started meets at `store_path`, a file on this host: no port to collide with.
        torchrun and srun give an address. A collective that takes longer than `timeout` fails.
        Raises ValueError if there are fewer GPUs than ranks.
        """
        device = _device(place, accelerator)
        backend = "nccl" if device.type == "cuda" else "gloo"
        options: dict[str, Any] = {"timeout": timeout}
        if device.type == "cuda":
            torch.cuda.set_device(device)
            options["device_id"] = device
        if store_path is not None:
            # One host: its loopback always works, unlike what its name resolves to on a laptop.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            options["store"] = dist.FileStore(store_path, place.size)
        elif place.origin == "srun":
            _meet_by_slurm()
        dist.init_process_group(backend, rank=place.rank, world_size=place.size, **options)
        return cls(place, device, backend, timeout)

    def leave(self) -> None:
        """Part from the other ranks, and end the threads that spoke to them.

        A process group's threads end with its last user, and a run's Trainer and DDP live on in cycles: left to
        the interpreter's end, a thread that still lets go of a tensor would abort a process that has done its work.
        """
        self._groups.clear()
        dist.destroy_process_group()
        gc.collect()

    def group(self, ranks: int) -> Any:
        """The process group of the `ranks` consecutive ranks around this one. Call it on every rank."""
        if ranks == self.place.size:
            return dist.group.WORLD
        if ranks not in self._groups:
            # Every rank must create every group, in the same order.
            for first in range(0, self.place.size, ranks):
                group = dist.new_group(list(range(first, first + ranks)), timeout=self.timeout)
                if first <= self.place.rank < first + ranks:
                    self._groups[ranks] = group
        return self._groups[ranks]

    def agree(self, problem: str | None) -> None:
        """Raise SetupError on every rank if any rank has a problem: the first rank's, the same everywhere."""
        for found in self.gathered(problem):
            if found is not None:
                raise SetupError(found)

    def together(self, step: Callable[[], T]) -> T:
        """Run a step that may find a user's mistake; if any rank finds one, every rank raises it.

        A step in which one rank alone may fail must have no collective: the others would wait in it.
        """
        problem = None
        try:
            result = step()
        except ValueError as error:
            problem = str(error)
        self.agree(problem)
        return result

    def from_leader(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        values: list[Any] = [None] * self.place.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, value: float) -> float:
        """The largest of the ranks' values, on every rank."""
        box = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return box.item()

    def any_of(self, value: bool) -> bool:
        """Whether any rank says so, on every rank."""
        return self.largest(float(value)) > 0

    @property
    def leads(self) -> bool:
        return self.place.rank == 0


def _meet_by_slurm() -> None:
    """Where the ranks of a step meet, unless given: its first node, and a port by job and step.

    Not by constructing Lightning's SLURMEnvironment, which refuses `srun --ntasks`.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    step = ".".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # Not their sum: a job's second step and the next job's first may be on one node at a time.
    os.environ.setdefault("MASTER_PORT", str(15000 + zlib.crc32(step.encode()) % 10000))


def _device(place: Place, accelerator: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "cpu" or (accelerator == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus < place.local_size:
        asked = f"trainer.accelerator={accelerator} with trainer.devices={place.local_size}"
        if place.origin == "srun":  # which may hide the GPUs of a node's other tasks
            raise ValueError(
                f"{asked}: this task of srun sees {gpus} GPU(s), and must see one for each rank of its node; ask for "
                f"--gpus-per-node={place.local_size}, not --gpus-per-task or --gpu-bind, or set trainer.accelerator=cpu"
            )
        fit = f"trainer.devices={gpus} or " if gpus else ""
        raise ValueError(
            f"{asked}: this machine has {gpus} GPU(s), and every rank needs its own; set {fit}trainer.accelerator=cpu"
        )
    return torch.device("cuda", place.local_rank)


def has_lost_a_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone. gloo has no exception of its own for that."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    gone = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in gone)


def failure(error: BaseException) -> Status:
    """The status of a run that an exception has ended."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in NO_MEMORY):
        return "oom"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "oom"
    return "timeout" if is_timeout(error) else "failed"


def is_timeout(error: BaseException) -> bool:
    """Whether a collective waited in vain: gloo has no exception of its own for that."""
    return isinstance(error, RuntimeError) and any(
        w in str(error) for w in ("Timed out waiting", "timed out")
    )


class JoinedEnvironment(ClusterEnvironment):
    """Tells Lightning that the ranks are there already: it must start none, and connect none."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    creates_processes_externally = True
    main_address = "127.0.0.1"  # never used: the process group exists
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return False  # only ever passed by hand

    def world_size(self) -> int:
        return self.place.size

    def global_rank(self) -> int:
        return self.place.rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.rank // self.place.local_size

    def set_world_size(self, size: int) -> None:
        assert size == self.place.size, (size, self.place)

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.place.rank, (rank, self.place)
