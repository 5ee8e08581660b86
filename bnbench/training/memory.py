"""The most memory that a rank holds in a run: of its GPU, or of its process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import torch

from bnbench.training.world import World

CUDA = "cuda allocated"
RESIDENT = "resident"
RESET = "5"  # to clear_refs: the peak of the resident set becomes what is resident now (Linux, proc(5))
PROC = Path("/proc/self")


class PeakMemory:
    """Counts from its construction on, so that a run in warm ranks is not charged with the run before.

    On CUDA, what tensors had at most: `torch.cuda.max_memory_allocated`, and beside it what the allocator reserved for
    them, which is what a GPU must have free (CUDA's own context comes on top). On a CPU, the resident set of the
    rank's process at its largest: libraries (some 400 MB) and decoded images are in it, pages shared with other ranks
    too, and worker processes that stream images are not. What an earlier run has left is given back first.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()  # a trainer and its model are a cycle
        self._counts = True
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_back()
        try:
            (PROC / "clear_refs").write_text(RESET)
        except OSError:  # not Linux, or a container without it
            self._counts = False

    def peak(self) -> int | None:
        """Bytes of this rank; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident_peak() if self._counts else None

    def largest(self, world: World) -> dict[str, Any]:
        """For the record: `peak_bytes` of the rank with the most, null where any rank cannot tell, and its `kind`.

        On CUDA `reserved_bytes` too. Call it on every rank.
        """
        peak, cuda = self.peak(), self.device.type == "cuda"
        missing = world.any_of(peak is None)
        found: dict[str, Any] = {"peak_bytes": None, "kind": CUDA if cuda else RESIDENT}
        if not missing:
            found["peak_bytes"] = int(world.largest(float(peak or 0)))
        if cuda:
            found["reserved_bytes"] = int(world.largest(float(torch.cuda.max_memory_reserved(self.device))))
        return found


def _give_back() -> None:
    """Freed memory that the C library keeps for later counts as resident; glibc gives it back when asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_peak() -> int | None:
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(number) for number in kilobytes), None)
