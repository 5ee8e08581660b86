"""What is measured is what SyncBN does. No time is judged here."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from bnbench.compose import compose_jobs
from bnbench.models import build_model
from bnbench.scale.cost_model import KINDS
from bnbench.scale.measure import Subject, TrainingStep, measure_as_rank, sizes_at_hand
from bnbench.scale.measured import Measured
from bnbench.scale.messages import SIZES, Messages
from bnbench.training.counting import Counting
from tests.ranks import on_ranks

WORDS = (
    "data=synthetic",
    "data.train_images=64",
    "model.width=4",
    "global_batch=8",
    "trainer.accelerator=cpu",
)


def a_subject(*words: str) -> Subject:
    (config,) = compose_jobs([*WORDS, *words])
    torch.manual_seed(0)
    return Subject(config, build_model("resnet8", 10, width=4), (3, 16, 16), 10, torch.device("cpu"))


def _after_steps(world):
    """Weights after two steps, by norm and by whether the ranks train together; and the collectives of one."""
    found, collectives = {}, {}
    for name, norm, group in (
        ("bn alone", "bn", world.group(1)),
        ("sync alone", "sync", world.group(1)),
        ("bn", "bn", world.group(2)),
        ("sync", "sync", world.group(2)),
    ):
        torch.manual_seed(world.place.rank)
        subject = a_subject("trainer.precision=fp32")
        step = TrainingStep(subject, norm, group)
        generator = torch.Generator().manual_seed(world.place.rank)
        step.images = torch.randn(step.images.shape, generator=generator)
        step.labels = torch.arange(len(step.images))
        with Counting() as seen:
            step()
        step()
        collectives[name] = [each.kind for each in seen.collectives]
        found[name] = torch.cat([p.detach().flatten() for p in step.model.parameters()])
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in subject.model.modules())
    return {name: weights.numpy() for name, weights in found.items()}, collectives, layers


def test_alone_syncbn_computes_what_bn_does_and_calls_its_collectives() -> None:
    first, second = on_ranks(2, _after_steps)
    for weights, collectives, layers in (first, second):
        assert layers > 5
        assert weights["sync alone"] == pytest.approx(weights["bn alone"], abs=1e-5)
        for name in ("sync alone", "sync"):
            assert sum("gather" in each for each in collectives[name]) == layers
        # DDP reduces gradients; it gathers nothing.
        assert not any("gather" in each for name in ("bn alone", "bn") for each in collectives[name])
    for name in ("bn", "sync"):
        assert first[0][name] == pytest.approx(second[0][name], abs=1e-6)  # DDP keeps the ranks equal
    for name in ("bn alone", "sync alone"):
        assert abs(first[0][name] - second[0][name]).max() > 1e-4
    assert abs(first[0]["bn"] - first[0]["sync"]).max() > 1e-4


def _messages(world):
    return Messages(world.group(2), world.device, 1e-4, SIZES[:3]).visit()


def test_every_size_of_message_is_timed_by_what_each_rank_gives() -> None:
    for found in on_ranks(2, _messages):
        assert list(found) == list(KINDS)
        assert list(found["all_reduce"]) == list(SIZES[:3])
        assert list(found["all_gather"]) == [size // 2 for size in SIZES[:3]]
        assert all(math.isfinite(seconds) for sizes in found.values() for seconds in sizes.values())
    assert (SIZES[0], SIZES[-1]) == (2**10, 2**26)


def _measured(world):
    (config,) = compose_jobs([*WORDS, "trainer.devices=4"])
    said: list[str] = []
    return measure_as_rank(config, world, 1, said.append), said


def test_ranks_that_are_too_many_for_a_world_wait_and_tell_nothing_of_it() -> None:
    found = on_ranks(4, _measured)
    for rank, (each, said) in enumerate(found):
        took_part = [2, 4] if rank < 2 else [4]
        assert [world["ranks"] for world in each["worlds"]] == took_part
        assert len(said) == len(took_part)
    measured = Measured.read(json.loads(json.dumps(found[0][0])))
    assert measured.rounds == 1
    for world in measured.worlds:
        assert set(world.steps) == {"bn alone", "sync alone", "bn", "sync"}
        assert min(min(times) for times in world.steps.values()) > 0


@pytest.mark.parametrize(
    ("ranks", "node", "sizes"),
    [
        (1, 1, [1]),
        (2, 2, [2]),
        (4, 4, [2, 4]),
        (6, 6, [2, 6]),
        (7, 7, [7]),
        (8, 4, [2, 4, 8]),
        (8, 1, [2, 4, 8]),
        (12, 6, [2, 4, 6, 12]),
        (18, 6, [2, 6, 18]),
        (32, 8, [2, 4, 8, 16, 32]),
    ],
)
def test_worlds_to_measure_are_inside_a_node_or_of_whole_nodes(
    ranks: int, node: int, sizes: list[int]
) -> None:
    assert sizes_at_hand(ranks, node) == sizes
    assert all(ranks % size == 0 for size in sizes)  # as the groups of a world must
