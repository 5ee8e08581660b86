"""`bnbench bench step`: who takes part, and what is worked out and shown. No time is judged here."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from bnbench import cli
from bnbench.benchmarks import block, step, yardsticks
from bnbench.benchmarks.block import WARMUP_STEPS, Stopwatch
from bnbench.benchmarks.figures import Figure
from bnbench.training.setup import DataCache, settle
from tests.ranks import on_ranks

TINY = step.Size(("model.width=4",), 2, 6, 2, 1.15)
FLAGS = (
    "broadcast_buffers",
    "gradient_as_bucket_view",
    "find_unused_parameters",
    "static_graph",
    "bucket_bytes_cap",
)


def _trained(world, folder):
    """By contender of a round: its parameters at the end, the flags of its DDP and its threads; and who took which
    step, in order."""
    os.chdir(folder)
    config, cache = step._config(TINY, world.place.size), DataCache()
    settle(config, world)
    models, flags, threads, taken = {}, {}, {}, []
    wrap, ended, set_up = DistributedDataParallel.__init__, Stopwatch.step_ended, block.set_up

    def who():
        here = threading.current_thread()
        return "bnbench" if here is threading.main_thread() else here.name

    def noted_wrap(self, module, **options):
        wrap(self, module, **options)
        flags[who()] = [getattr(self, name) for name in FLAGS]

    def noted_step(self, number):
        taken.append((who(), number))
        threads[who()] = torch.get_num_threads()
        ended(self, number)

    def noted_set_up(*words):
        setup = set_up(*words)
        models[who()] = setup.module.model
        return setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedDataParallel, "__init__", noted_wrap)
        patch.setattr(Stopwatch, "step_ended", noted_step)
        for module in (block, yardsticks):
            patch.setattr(module, "set_up", noted_set_up)
        watches = step._round(["plain", "bnbench", "bare"], TINY.turn, config, world, cache)
    assert all(watch.seconds > 0 and watch.cpu_seconds > 0 for watch in watches.values())
    trained = {
        name: {path: p.detach().clone() for path, p in model.named_parameters()}
        for name, model in models.items()
    }
    return trained, flags, threads, taken


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_contenders_train_one_network_alike_a_few_steps_each_in_turn(ranks, tmp_path):
    turns = [range(WARMUP_STEPS)] + [
        range(first, first + TINY.turn) for first in range(WARMUP_STEPS, WARMUP_STEPS + TINY.steps, TINY.turn)
    ]
    for trained, flags, threads, taken in on_ranks(ranks, _trained, str(tmp_path)):
        assert taken == [
            (name, number) for turn in turns for name in ("plain", "bnbench", "bare") for number in turn
        ]
        assert set(threads.values()) == {1}
        if ranks > 1:
            assert flags["bare"][:2] == [False, True] and flags["plain"] == flags["bnbench"] == flags["bare"]
        for name in ("plain", "bnbench"):
            for path, value in trained["bare"].items():
                assert torch.equal(value, trained[name][path]), (name, path)


def test_what_is_between_turns_is_not_timed():
    watch = Stopwatch(2, lambda: time.sleep(0.2))
    for number in range(WARMUP_STEPS + 4):
        watch.step_ended(number)
    assert 0 < watch.seconds < 0.2  # of three times 0.2 s
    assert len(watch.busy) == WARMUP_STEPS + 4


def test_a_round_is_an_epoch_with_all_that_a_run_looks_at():
    for size in step.SIZES.values():
        config = step._config(size, 2)
        assert config.per_device_batch == size.images and config.trainer.world_size == 2
        assert config.data.max_train == 2 * size.images * (WARMUP_STEPS + size.steps)
        assert config.logger.name == "wandb"
        assert (
            config.measure.speed_every and config.measure.health_every and config.trainer.checkpoint_minutes
        )
    resnet50 = step._config(step.SIZES["resnet50-4"], 2)
    assert (resnet50.model.name, resnet50.data.image_size) == ("resnet50", 64)


def test_each_contender_is_first_as_often_as_the_others():
    orders = [step._rotated(["a", "b", "c"], turn) for turn in range(6)]
    assert [order[0] for order in orders] == ["a", "b", "c"] * 2
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_the_figure_is_of_ratios_within_a_round():
    # A machine that is ten times slower in every other round: the ratio does not see it.
    seconds = {"bare": [1.0, 10.0] * 5, "bnbench": [1.1, 11.0] * 5}
    figure = step._to_bare("x", seconds, "bnbench", 1.15)
    assert (figure.value, figure.low, figure.high) == pytest.approx((1.1, 1.1, 1.1))
    assert figure.met == "yes" and step._to_bare("x", seconds, "bnbench", 1.05).met == "no"


@pytest.fixture(scope="module")
def result():
    return step.measure(rounds=1, ranks=2, sizes={"tiny": TINY})


def test_result_is_json_with_figures(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    found = result["by_size"]["tiny"]
    assert set(found["seconds"]) == set(found["ms"]) == {"bare", "plain", "bnbench"}
    figures = {figure.name: figure for figure in map(Figure.from_json, result["figures"])}
    ours = figures["tiny: bnbench / bare"]
    assert ours.value == found["seconds"]["bnbench"][0] / found["seconds"]["bare"][0]
    assert ours.target == TINY.target and ours.met in ("yes", "no", "open")
    assert figures["tiny: plain Lightning / bare"].target is None
    assert figures["tiny: health signals, of a step"].target == step.HEALTH_TARGET
    text = step.table(result)
    assert "2 rank(s)" in text and "tiny: bnbench / bare" in text and "at most 1.15" in text


def test_the_targets_are_for_two_ranks():
    found = step.measure(rounds=1, ranks=1, sizes={"tiny": TINY})
    aims = {figure["name"]: figure["target"] for figure in found["figures"]}
    assert aims["tiny: bnbench / bare"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds=0"], "--rounds=0 and --ranks=2 must be at least 1"),
        (["--ranks=0"], "--rounds=10 and --ranks=0 must be at least 1"),
        (
            ["--sizes=resnet8-2,resnet9"],
            "--sizes=resnet9 is unknown; known: resnet8-32, resnet8-2, resnet50-4",
        ),
    ],
)
def test_a_bad_option_is_one_line(words, said, capsys):
    assert cli.main(["bench", "step", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
