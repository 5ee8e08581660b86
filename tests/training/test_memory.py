"""The most memory of a run: what it held, and nothing that an earlier one left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnbench.training import memory
from bnbench.training.memory import PeakMemory
from tests.ranks import on_ranks

MB = 2**20
CPU = torch.device("cpu")


def _held(megabytes: int, pieces: int = 1) -> int:
    """The peak of a run that holds so much for a while."""
    peak = PeakMemory(CPU)
    kept = [torch.ones(megabytes * MB // 4 // pieces) for _ in range(pieces)]
    assert len(kept) == pieces
    del kept
    found = peak.peak()
    assert found is not None
    return found


def _needs_linux() -> None:
    if PeakMemory(CPU).peak() is None:
        pytest.skip("this system does not reset the peak of the resident set")


def test_what_was_freed_in_a_run_is_in_its_peak():
    _needs_linux()
    small = _held(1)
    assert _held(400) - small == pytest.approx(400 * MB, rel=0.05)


@pytest.mark.parametrize("pieces", [1, 4000], ids=["mapped", "on the heap"])
def test_a_run_is_not_charged_with_the_one_before(pieces):
    _needs_linux()
    before = _held(1)
    assert _held(400, pieces) > before + 350 * MB
    assert _held(1) < before + 40 * MB


def test_a_trainer_that_nobody_holds_is_gone():
    """Lightning's trainer and module hold each other: only the collector frees them."""
    _needs_linux()

    def leave_a_cycle() -> None:
        left = {"tensor": torch.ones(100 * MB)}
        left["me"] = left

    before = _held(1)
    leave_a_cycle()
    assert _held(1) < before + 40 * MB


def _largest(world, broken: int | None) -> tuple[dict, dict]:
    if world.place.rank == broken:
        memory.PROC = Path("/nowhere")
    peak = PeakMemory(world.device)
    alone = peak.largest(world)
    if world.place.rank == 1:
        torch.ones(100 * MB)
    return alone, peak.largest(world)


def test_the_rank_with_the_most_speaks_for_all():
    _needs_linux()
    first, second = on_ranks(2, _largest, None)
    assert first == second
    alone, grown = first
    assert alone["kind"] == grown["kind"] == "resident"
    assert grown["peak_bytes"] > alone["peak_bytes"] + 350 * MB


def test_where_one_rank_cannot_tell_there_is_no_number():
    first, second = on_ranks(2, _largest, 1)
    assert first == second == ({"peak_bytes": None, "kind": "resident"},) * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_what_tensors_had():
    device = torch.device("cuda")

    def held(megabytes: int) -> int:
        peak = PeakMemory(device)
        kept = torch.ones(megabytes * MB // 4, device=device)
        del kept
        found = peak.peak()
        assert found is not None
        return found

    before = held(1)
    assert held(400) - before == pytest.approx(399 * MB, rel=0.01)
    assert held(1) == before
