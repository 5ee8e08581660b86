"""What a run tells of its own speed: exact counts, parts that add up, and training that is what it would be."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.data.waiting import WatchedLoader
from bnbench.launch import Place
from bnbench.records import RECORD, Record, read_record
from bnbench.training.callbacks import Speed
from bnbench.training.callbacks.speed import COUNTED_STEP, FIRST_LOOK, busiest, typical
from bnbench.training.marks import CALLS, PARTS, UNMARKED, Marks
from bnbench.training.peaks import PEAKS, peak_flops_per_s
from bnbench.training.result import timings
from bnbench.training.world import World
from tests.ranks import WarmWorld

# 8 steps of 64 in an epoch.
SMALL = [
    "data.max_train=512", "data.max_test=64", "epochs=2", "optim.warmup_epochs=0", "logger=none", "model.width=4",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.checkpoint_minutes=null", "measure=none",
]  # fmt: skip
FLOAT = 4


@pytest.fixture(scope="module")
def worlds():
    with WarmWorld(1) as one, WarmWorld(2) as two:
        yield {1: one, 2: two}


def _config(folder: Path, *words: str) -> RunConfig:
    (config,) = compose_jobs([*SMALL, *words], multirun=False)
    return dataclasses.replace(config, dir=str(folder))


def _train(world: Any, config: RunConfig) -> tuple[str, Any]:
    """Train; what is left of measuring in this process, and the sizes of the network's norms and gradients."""
    from bnbench.training import run
    from bnbench.training.setup import DataCache

    setups = []
    original, before = run.set_up, {name: getattr(dist, name) for name in CALLS}
    run.set_up = lambda *arguments: setups.append(original(*arguments)) or setups[-1]
    try:
        assert run.train_run(config, world, DataCache(), lambda _: None) == "completed"
    finally:
        run.set_up = original
    module = setups[0].module
    left = [name for name in CALLS if getattr(dist, name) is not before[name]]
    left += ["marks"] * (module.marks is not UNMARKED)
    left += ["mode"] * bool(_get_current_dispatch_mode_stack())
    left += [path for path, part in module.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    channels = [m.num_features for m in module.model.modules() if hasattr(m, "num_features")]
    return left, (channels, sum(p.numel() for p in module.model.parameters()))


def _record(config: RunConfig) -> Record:
    return read_record(config.folder / RECORD)


# Training is what it would be


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    "words",
    [
        ("norm=syncbn",),
        ("norm=bn", "norm.batch_size=8", "recipe.accumulate=2", "recipe.clip_norm=1.0", "recipe.ema=0.9"),
        ("norm=brn",),
        ("norm=evonorm_b0", "model.dropout=0.3"),
    ],
    ids=lambda words: words[0],
)
def test_measuring_leaves_no_trace_in_training_or_behind_it(worlds, tmp_path, words, size):
    words = (*words, f"trainer.devices={size}")
    seen = _config(tmp_path / "seen", *words, "measure.speed_every=1")
    unseen = _config(tmp_path / "unseen", *words)
    for left, _ in worlds[size].call(_train, seen):
        assert left == []
    worlds[size].call(_train, unseen)
    assert seen.identity() == unseen.identity()
    one, other = _record(seen), _record(unseen)
    assert one.metrics == other.metrics and one.metrics["weights_sha256"] is not None
    assert one.speed["looks"] > 5
    assert other.speed == {}


# Counts


def _expected(channels: list[int], parameters: int, forward: str, backward: str, parts: int, float_: int):
    """SyncBN's formula by layer: [mean, var, images, pixels] gathered, [sum dy, sum dy xhat] reduced."""
    norm = {
        forward: {"count": len(channels), "bytes": sum(float_ * (2 * c + 2) for c in channels)},
        backward: {"count": len(channels), "bytes": sum(float_ * 2 * c for c in channels)},
    }
    for sums in norm.values():
        sums["count"], sums["bytes"] = parts * sums["count"], parts * sums["bytes"]
    return {"norm": norm, "gradients": {"all_reduce": {"count": 1, "bytes": float_ * parameters}}}


@pytest.mark.parametrize(
    ("words", "parts", "float_"),
    [
        (("norm=syncbn",), 1, 4),
        (("norm=syncbn", "recipe.accumulate=2"), 2, 4),
        (("norm=syncbn", "trainer.precision=fp64"), 1, 8),
        (("norm=syncbn", "trainer.precision=bf16"), 1, 4),
    ],
    ids=["plain", "accumulated", "fp64", "bf16"],
)
def test_collectives_of_a_step_are_those_of_the_formula(worlds, tmp_path, words, parts, float_):
    config = _config(tmp_path, *words, "measure.speed_every=7")
    ((_, (channels, parameters)), _) = worlds[2].call(_train, config)
    assert len(channels) == 7
    assert _record(config).speed["collectives"] == _expected(
        channels, parameters, "all_gather", "all_reduce", parts, float_
    )


def test_what_spans_no_ranks_shares_gradients_alone(worlds, tmp_path):
    config = _config(tmp_path, "norm=bn", "norm.batch_size=8", "measure.speed_every=7")
    ((_, (_, parameters)), _) = worlds[2].call(_train, config)
    assert _record(config).speed["collectives"] == {
        "gradients": {"all_reduce": {"count": 1, "bytes": FLOAT * parameters}}
    }


def test_brn_merges_its_running_statistics_at_each_step(worlds, tmp_path):
    """On top of what SyncBN does; the merge is the norm's, though a callback does it before the step."""
    config = _config(tmp_path, "norm=brn", "norm.batch_size=64", "measure.speed_every=7")
    ((_, (channels, parameters)), _) = worlds[2].call(_train, config)
    want = _expected(channels, parameters, "all_gather", "all_reduce", 1, FLOAT)
    want["norm"]["all_reduce"]["count"] += 1
    want["norm"]["all_reduce"]["bytes"] += 2 * FLOAT * sum(channels)
    assert _record(config).speed["collectives"] == want


def test_what_else_is_measured_at_the_counted_step_does_not_count(worlds, tmp_path):
    plain = _config(tmp_path / "plain", "norm=syncbn", "measure.speed_every=7")
    busy = _config(
        tmp_path / "busy", "norm=syncbn", "measure=landscape", "measure.health_every=1", "measure.landscape_every=1",
        "trainer.log_every=1", "measure.statistics=false",
    )  # fmt: skip
    for config in (plain, busy):
        worlds[2].call(_train, config)
    one, other = _record(plain).speed, _record(busy).speed
    assert one["flops_per_step"] == other["flops_per_step"] > 0
    for owner in ("norm", "gradients"):
        assert one["collectives"][owner] == other["collectives"][owner]


def test_a_rank_does_its_share_of_the_operations(worlds, tmp_path):
    flops = {}
    for size in worlds:
        config = _config(tmp_path / str(size), "norm=gn", f"trainer.devices={size}", "measure.speed_every=7")
        worlds[size].call(_train, config)
        flops[size] = _record(config).speed["flops_per_step"]
    assert flops[1] == 2 * flops[2]


# Times


def _train_slowly(world: Any, config: RunConfig, rank: int, seconds: float) -> None:
    """A rank that waits for its batches."""
    from bnbench.data import loader

    original = loader.Normalizer.__call__

    def late(self: Any, images: torch.Tensor) -> torch.Tensor:
        if world.place.rank == rank:
            time.sleep(seconds)
        return original(self, images)

    loader.Normalizer.__call__ = late
    try:
        _train(world, config)
    finally:
        loader.Normalizer.__call__ = original


@pytest.mark.parametrize("norm", ["syncbn", "gn"])
def test_the_record_is_of_the_rank_that_others_wait_for(worlds, tmp_path, norm):
    config = _config(tmp_path, f"norm={norm}", "measure.speed_every=1")
    worlds[2].call(_train_slowly, config, 1, 0.03)
    speed = _record(config).speed
    assert speed["rank"] == 1
    assert speed["parts_ms"]["data_wait"] >= 30
    assert set(speed["parts_ms"]) == set(PARTS)
    assert sum(speed["parts_ms"].values()) == pytest.approx(speed["step_ms"], rel=1e-9)
    assert min(speed["parts_ms"].values()) >= 0
    assert speed["parts_ms"]["forward"] > 0 and speed["parts_ms"]["backward"] > 0
    assert speed["achieved_flops_per_s"] == pytest.approx(1000 * speed["flops_per_step"] / speed["step_ms"])
    assert speed["peak_flops_per_s"] is None and speed["mfu"] is None  # a CPU


def test_a_step_s_parts_are_the_step(worlds, tmp_path):
    """Looked at in each step, the step is what training takes by another clock, evaluations left out."""
    config = _config(tmp_path, "norm=gn", "trainer.devices=1", "measure.speed_every=1", "epochs=4")
    worlds[1].call(_train_slowly, config, 0, 0.02)
    record = _record(config)
    assert record.speed["step_ms"] == pytest.approx(record.timings["step_ms"], rel=0.4)


def test_a_run_that_is_too_short_says_so(worlds, tmp_path):
    config = _config(tmp_path, "norm=gn", "data.max_train=128", "epochs=1", "measure.speed_every=7")
    worlds[2].call(_train, config)
    speed = _record(config).speed
    assert speed["looks"] == 0
    assert speed["parts_ms"] == dict.fromkeys(PARTS)
    for key in ("rank", "step_ms", "flops_per_step", "achieved_flops_per_s", "mfu", "collectives"):
        assert speed[key] is None, key


def test_the_default_looks_often_enough_at_a_short_run():
    """As few steps as 48: three epochs of a thousand images. A look waits for a step or two at most."""
    (config,) = compose_jobs([], multirun=False)
    assert config.measure.speed_every is not None
    assert (48 - FIRST_LOOK) // (config.measure.speed_every + 1) >= 5


def test_the_steady_rate_is_without_the_start_and_without_evaluations():
    def rate(evaluations: list[float], windows: list[float]) -> float | None:
        rows, curve = (
            [SimpleNamespace(images_per_s=value) for value in values] for values in (evaluations, windows)
        )
        found = timings(rows, SimpleNamespace(windows=curve, global_batch=64), 9.0, 1.0)  # type: ignore[arg-type]
        if "images_per_s" in found:
            assert found["step_ms"] == pytest.approx(64000 / found["images_per_s"])
        return found.get("images_per_s")

    assert rate([10.0, 100.0, 90.0, 95.0], [1.0, 2.0, 3.0]) == 95
    assert rate([50.0], [20.0, 80.0, 84.0, 70.0]) == 80
    assert rate([50.0], [50.0]) == 50, "it is all that there is"
    assert rate([], [20.0, 30.0]) is None


# When


class _Loop:
    """Enough of Lightning to drive the callback: `looked` are the steps that had marks from their beginning."""

    def __init__(self, *words: str, every: int) -> None:
        (config,) = compose_jobs(
            [*SMALL, "trainer.devices=1", *words, f"measure.speed_every={every}"], multirun=False
        )
        self.parts = config.recipe.accumulate
        self.world = World(Place(0, 1, 0, 1), torch.device("cpu"), "gloo")
        self.loader = WatchedLoader(SimpleNamespace(epoch=0))  # type: ignore[arg-type]
        self.callback = Speed(config, self.world, self.loader)
        self.model, self.marks, self.device = nn.Linear(2, 2), UNMARKED, torch.device("cpu")
        self.trainer: Any = SimpleNamespace(global_step=0)
        self.looked: list[int] = []
        self.counted: list[int] = []

    def epoch(self, steps: int) -> None:
        for step in range(steps):
            looked = isinstance(self.marks, Marks)
            counting = bool(_get_current_dispatch_mode_stack())
            for part in range(self.parts):
                self.trainer.global_step += part + 1 == self.parts
                self.callback.on_train_batch_end(self.trainer, self, None, None, step * self.parts + part)
            if looked:
                (self.counted if counting else self.looked).append(self.trainer.global_step)
        self.callback.on_validation_start(self.trainer, self)
        self.callback.on_train_epoch_end(self.trainer, self)
        assert self.marks is UNMARKED and not _get_current_dispatch_mode_stack()


def test_looks_come_at_their_interval_after_the_warm_up():
    loop = _Loop(every=7)
    loop.epoch(40)
    assert loop.counted == [COUNTED_STEP]
    assert loop.looked == [6, 13, 20, 27, 34]
    assert len(loop.callback.looks) + len(loop.callback._unread) == 5


@pytest.mark.parametrize("parts", [1, 3])
def test_a_look_is_at_a_typical_step(parts):
    """Never the first after an evaluation, nor beside a look for something else or the end of a window."""
    words = (
        "measure.health_every=5", "measure.landscape=true", "measure.landscape_every=9", "trainer.log_every=4",
        f"recipe.accumulate={parts}", "global_batch=48",
    )  # fmt: skip
    loop = _Loop(*words, every=1)
    for _ in range(6):
        loop.epoch(15)
    typical_ones = {
        step
        for step in range(FIRST_LOOK, 91)
        if (step - 1) % 15  # the first of an epoch
        and ((step - 1) % 15) % 4  # the one before ended a window
        and all(step % every and (step - 1) % every for every in (5, 9))
    }
    assert set(loop.looked) == typical_ones
    assert loop.counted == [3]


def test_what_comes_at_every_step_is_part_of_training():
    loop = _Loop("measure.health_every=1", "trainer.log_every=1", every=4)
    loop.epoch(20)
    assert loop.looked == [6, 10, 14, 18]


def test_a_failure_in_a_step_leaves_nothing_behind():
    calls = {name: getattr(dist, name) for name in CALLS}
    for steps in (COUNTED_STEP - 1, FIRST_LOOK - 1):
        loop = _Loop(every=7)
        for step in range(steps):
            loop.callback.on_train_batch_end(loop.trainer, loop, None, None, step)
        assert isinstance(loop.marks, Marks)
        loop.callback.on_exception(loop.trainer, loop, RuntimeError())
        assert loop.marks is UNMARKED and not _get_current_dispatch_mode_stack()
        assert {name: getattr(dist, name) for name in CALLS} == calls


# Going on


def test_a_run_that_goes_on_keeps_its_looks_and_its_counts():
    first, second = _Loop(every=3), _Loop(every=3)
    first.epoch(20)
    state = first.callback.state_dict()
    second.callback.load_state_dict(state)
    second.trainer.global_step = 20
    second.epoch(20)
    assert second.counted == [], "the same step is not counted twice"
    assert second.callback.counts == first.callback.counts
    assert second.looked[0] == 20 + FIRST_LOOK, "each attempt warms up"
    assert len(second.callback.state_dict()["looks"]) == len(first.looked) + len(second.looked)


def test_looks_on_other_ranks_are_left():
    first, second = _Loop(every=3), _Loop(every=3)
    first.epoch(20)
    second.callback.world = World(Place(0, 2, 0, 2), torch.device("cpu"), "gloo")
    second.callback.load_state_dict(first.callback.state_dict())
    assert not second.callback.looks and second.callback.counts is None


def _left_and_taken_up(world: Any, config: RunConfig) -> None:
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache

    asked = iter([False, False, True])
    with pytest.raises(PreemptedError):
        train_run(config, world, DataCache(), lambda _: None, lambda: next(asked))
    assert train_run(config, world, DataCache(), lambda _: None) == "completed"


def test_an_interrupted_run_has_the_speed_of_one(worlds, tmp_path):
    words = ("norm=syncbn", "measure.speed_every=2", "epochs=3", "trainer.log_every=3")
    whole, left = _config(tmp_path / "whole", *words), _config(tmp_path / "left", *words)
    worlds[2].call(_train, whole)
    worlds[2].call(_left_and_taken_up, left)
    one, other = _record(whole), _record(left)
    assert one.metrics == other.metrics
    assert other.provenance["resumed"]
    for key in ("flops_per_step", "collectives"):
        assert one.speed[key] == other.speed[key]
    assert 1 < other.speed["looks"] <= one.speed["looks"]


# Summing up


def test_the_middle_half_adds_up_and_forgets_what_strays():
    looks = [(1.0, 2.0, 3.0, 0.5, 0.25, 0.125)] * 6
    exact = dict(zip(PARTS, looks[0], strict=True))
    assert typical(looks) == exact
    assert typical([*looks, (1000.0,) * 6, (0.0,) * 6]) == exact
    assert typical([]) == {}
    assert typical(looks[:1]) == exact


def test_the_busiest_rank_waits_least():
    def parts(own: float, waiting: float) -> dict[str, float]:
        return {"forward": own, "communication": waiting}

    assert busiest([parts(1, 9), parts(4, 6), parts(2, 8)]) == 1
    assert busiest([{}, {}]) == 0


# Peaks


def test_a_device_is_known_by_its_whole_name():
    names = {
        "Tesla V100-SXM2-32GB": (15.7, 15.7, None),
        "NVIDIA A100-SXM4-80GB": (19.5, 156, 312),
        "NVIDIA A100 80GB PCIe": (19.5, 156, 312),
        "NVIDIA H100 80GB HBM3": (67, 494.7, 989.4),
        "NVIDIA H100 PCIe": (51, 378, 756),
        "NVIDIA L4": (30.3, 60, 121),
        "NVIDIA L40S": (91.6, 183, 362),
        "NVIDIA GeForce RTX 4090": (82.6, 82.6, 165.2),
    }
    for name, (fp32, tf32, bf16) in names.items():
        found = (
            peak_flops_per_s(name, "fp32", False),
            peak_flops_per_s(name, "fp32", True),
            peak_flops_per_s(name, "bf16", True),
        )
        assert found == (fp32 * 1e12, tf32 * 1e12, None if bf16 is None else bf16 * 1e12), name
    for other in (
        None,
        "",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A10G",
        "AMD",
    ):
        assert peak_flops_per_s(other, "bf16", True) is None, other
    assert peak_flops_per_s("NVIDIA H200", "fp64", False) is None


def test_shorter_numbers_are_never_slower():
    for fp32, tf32, bf16 in PEAKS.values():
        assert (tf32 is None) == (bf16 is None)
        if tf32 is not None and bf16 is not None:
            assert fp32 <= tf32 < bf16
            assert bf16 == pytest.approx(2 * tf32, rel=0.02)
