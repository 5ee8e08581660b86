"""`bnbench bench step`: who takes part, and what is worked out and shown. No time is judged here."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from bnbench import cli
from bnbench.benchmarks import block, step, yardsticks
from bnbench.benchmarks.block import WARMUP_STEPS, Stopwatch
from bnbench.benchmarks.figures import Figure
from bnbench.training.setup import DataCache
from tests.ranks import on_ranks

TINY = step.Size(("model.width=4",), 2, 6, 1.15)
FLAGS = (
    "broadcast_buffers",
    "gradient_as_bucket_view",
    "find_unused_parameters",
    "static_graph",
    "bucket_bytes_cap",
)


def _trained(world, folder):
    """By contender: the parameters at the end, the steps that were timed, and the flags of its DDP."""
    os.chdir(folder)
    config, cache, found = step._config(TINY, world.place.size), DataCache(), {}
    flags, steps, models = [], [], []
    wrap, ended, set_up = DistributedDataParallel.__init__, Stopwatch.step_ended, block.set_up

    def noted_wrap(self, module, **options):
        wrap(self, module, **options)
        flags.append([getattr(self, name) for name in FLAGS])

    def noted_step(self, number):
        ended(self, number)
        steps.append(number)

    def noted_set_up(*words):
        setup = set_up(*words)
        models.append(setup.module.model)
        return setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedDataParallel, "__init__", noted_wrap)
        patch.setattr(Stopwatch, "step_ended", noted_step)
        for module in (block, yardsticks):
            patch.setattr(module, "set_up", noted_set_up)
        for name, contender in step.CONTENDERS.items():
            assert contender(config, world, cache).seconds > 0
            parameters = {path: p.detach().clone() for path, p in models[-1].named_parameters()}
            found[name] = parameters, [*steps], [*flags]
            steps.clear()
            flags.clear()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_contenders_train_one_network_alike(ranks, tmp_path):
    for found in on_ranks(ranks, _trained, str(tmp_path)):
        assert list(found) == ["bare", "plain", "bnbench"]
        parameters, steps, flags = found["bare"]
        assert steps == list(range(WARMUP_STEPS + TINY.steps))
        assert [each[:2] for each in flags] == [[False, True]] * (ranks > 1)
        for name in ("plain", "bnbench"):
            its_parameters, its_steps, its_flags = found[name]
            assert (its_steps, its_flags) == (steps, flags), name
            for path, value in parameters.items():
                assert torch.equal(value, its_parameters[path]), (name, path)


def test_a_block_is_an_epoch_with_all_that_a_run_looks_at():
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
        (["--ranks=0"], "--rounds=20 and --ranks=0 must be at least 1"),
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
