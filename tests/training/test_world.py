"""What ends a run has a name, however torch says it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.launch import Place
from bnbench.training.world import World, _meet_by_slurm, failure
from tests.ranks import on_ranks

ENDS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
    (MemoryError(), "oom"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
    # torch.AcceleratorError is one: another process has filled the device.
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "oom"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
    (OSError(errno.ENOSPC, "No space left on device"), "failed"),
    (RuntimeError("Timed out waiting 1000ms for recv operation to complete"), "timeout"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "failed"),
    (ValueError("out of range"), "failed"),
]


@pytest.mark.parametrize(("error", "status"), ENDS, ids=lambda value: str(value)[:40])
def test_an_error_has_one_status(error: BaseException, status: str) -> None:
    assert failure(error) == status


def _port(monkeypatch: pytest.MonkeyPatch, job: int, step: int) -> int:
    monkeypatch.setattr(os, "environ", {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
    _meet_by_slurm()
    return int(os.environ["MASTER_PORT"])


def test_steps_of_neighboring_jobs_meet_at_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [_port(monkeypatch, job, step) for job in range(4242, 4246) for step in range(4)]
    assert len(set(ports)) == len(ports)
    assert all(15000 <= port < 25000 for port in ports)
    assert _port(monkeypatch, 4242, 0) == 19726  # on every node


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_task_of_srun_that_sees_too_few_gpus_is_told_how_to_see_them(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(
        ValueError, match=rf"devices=2.* sees {gpus} .*--gpus-per-node=2, not --gpus-per-task"
    ):
        World.join(Place(1, 2, 1, 2, "srun"), "gpu")


def _threads() -> set[str]:
    return {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}


def _ended(world: Any) -> tuple[set[str], set[str]]:
    """The names of this process's threads before and after it leaves, with DDP left in a cycle as a run leaves it."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2), process_group=world.group(1))
    model.itself = model
    model(torch.ones(1, 2)).sum().backward()
    del model
    before = _threads()
    world.leave()
    return before, _threads()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed by Linux")
def test_the_threads_of_a_world_end_with_it() -> None:
    """Else one may abort a process that has done its work: exit code -6, "terminate called"."""
    for before, after in on_ranks(2, _ended):
        assert "pt_gloo_runloop" in before
        assert not {name for name in after if "gloo" in name}, after
