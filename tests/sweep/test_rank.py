"""A rank that cannot join its world answers, with the cause."""

from __future__ import annotations

import pytest

from bnbench.compose import compose_jobs
from bnbench.launch import Place
from bnbench.sweep.options import Share
from bnbench.sweep.rank import _count_gpus, _join
from bnbench.training.world import World

ENDS = [
    (ValueError("this machine has 1 GPU(s)"), "refused", "this machine has 1 GPU(s)"),
    (RuntimeError("CUDA error: out of memory"), "oom", "Traceback"),
    (RuntimeError("NCCL error: unhandled system error"), "failed", "Traceback"),
]


@pytest.mark.parametrize(("error", "status", "said"), ENDS, ids=lambda value: str(value)[:30])
def test_what_a_rank_meets_in_joining_answers_every_run(monkeypatch, error, status, said) -> None:
    def join(*_: object) -> World:
        raise error

    monkeypatch.setattr(World, "join", join)
    world, answer = _join(Place(0, 1, 0, 1), compose_jobs([])[0].trainer, "store", Share())
    assert world is None and answer is not None
    assert answer[0] == status
    assert str(answer[1]).startswith(said) and str(error) in str(answer[1])


def test_a_world_without_gpus_of_its_own_joins_nothing_where_others_have_them(monkeypatch) -> None:
    """accelerator=auto would take the CPU, and its runs would stand beside those of a GPU."""
    monkeypatch.setattr("bnbench.sweep.rank._count_gpus", lambda: 1)
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cores: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(World, "join", lambda *_: pytest.fail("joined"))
    trainer = compose_jobs(["trainer.devices=1"])[0].trainer
    world, answer = _join(Place(0, 1, 0, 1), trainer, "store", Share(1, 2))
    assert world is None and answer is not None and answer[0] == "refused"
    assert "that takes 2 GPUs, and there are 1 here" in str(answer[1])


def test_gpus_are_counted_without_touching_cuda() -> None:
    import torch

    counted = _count_gpus()
    assert not torch.cuda.is_initialized()
    assert counted == torch.cuda.device_count()
