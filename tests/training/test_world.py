"""What ends a run has a name, however torch says it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.training.world import failure
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
