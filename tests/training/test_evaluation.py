"""What a run measures at its end, and the policy that measures statistics anew before each evaluation."""

from __future__ import annotations

import copy
import csv
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.compose import compose_jobs
from bnbench.config.optim import scheduled
from bnbench.norms import merge_running_statistics, precise_statistics, running_statistics, tracking_norms
from bnbench.sweep.short import Sizes, measured_images
from bnbench.training.callbacks import FreezeStatistics, RunningStatistics, precise_over
from bnbench.training.evaluation import GENERALIZATION, STATISTICS, FinalMeasures, Measured
from bnbench.training.meter import Meter
from tests.ranks import WarmWorld

WORDS = (
    "trainer.accelerator=cpu", "logger=none", "model.width=4", "data.max_train=192", "data.max_test=64",
    "trainer.precision=fp64",
)  # fmt: skip


def _config(*words: str):
    return compose_jobs([*WORDS, *words])[0]


@pytest.fixture(scope="module")
def alone():
    """A world of this process alone."""
    import tempfile

    from bnbench.launch import Place
    from bnbench.training.world import World

    with tempfile.TemporaryDirectory() as folder:
        world = World.join(Place(0, 1, 0, 1), "cpu", f"{folder}/store")
        yield world
        world.leave()


@pytest.fixture(scope="module")
def two():
    with WarmWorld(2) as world:
        yield world


def _set_up(world, config, steps: int = 3):
    """A setup whose network has seen some images, and so has running statistics of its own."""
    from bnbench.training.setup import DataCache, set_up

    setup = set_up(config, world, DataCache())
    setup.module.double()
    with torch.no_grad():
        for _, (images, _) in zip(range(steps), setup.train_loader, strict=False):
            setup.module.model.train()(images)
    return setup


def _measure(world, config, setup, *, done: bool = True) -> Measured:
    running = RunningStatistics("mean")
    running.merge(setup.module.model, 0)
    return FinalMeasures(config, world, setup, running).measure(nullcontext, done)


def _error(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return 100 * (network(images).argmax(1) != labels).double().mean().item()


def _test_set(setup) -> tuple[torch.Tensor, torch.Tensor]:
    images = setup.splits.test
    return setup.test_loader.normalize(images.images), images.labels


# Errors


def test_errors_are_those_of_the_three_kinds_of_statistics(alone):
    config = _config("trainer.devices=1", "norm=bn")
    setup = _set_up(alone, config)
    found = _measure(alone, config, setup).metrics
    model, (images, labels) = setup.module.model, _test_set(setup)
    assert found["val_error_running"] == _error(copy.deepcopy(model).eval(), images, labels)
    precise = copy.deepcopy(model)
    precise_statistics(precise, [batch for batch, _ in setup.train_loader])
    assert found["val_error_precise"] == _error(precise.eval(), images, labels)
    # One batch holds the whole set here, and so its statistics are the set's.
    assert found["val_error_batch"] == _error(copy.deepcopy(model).train(), images, labels)
    assert found["val_images_batch"] == 64
    assert len({found[key] for key in STATISTICS[:3]}) > 1, "a network of three steps tells them apart"


def test_precise_steps_bound_the_images_behind_precise_statistics(alone):
    config = _config(
        "trainer.devices=1", "measure.precise_steps=1", "recipe.accumulate=2", "data.augment=crop"
    )
    setup = _set_up(alone, config)
    model, first = copy.deepcopy(setup.module.model), copy.deepcopy(setup.module.model)
    precise_over(setup.train_loader, 1)(model)
    batches = [images for images, _ in setup.train_loader]
    precise_statistics(first, batches[:2])  # the two parts of the first step
    for mine, its in zip(running_statistics(model).values(), running_statistics(first).values(), strict=True):
        assert torch.equal(mine, its)
    precise_over(setup.train_loader, 100)(model)  # at most an epoch
    precise_statistics(first, batches)
    for mine, its in zip(running_statistics(model).values(), running_statistics(first).values(), strict=True):
        assert torch.equal(mine, its)


def test_the_training_images_are_as_many_and_not_augmented(alone):
    config = _config("trainer.devices=1", "norm=gn", "data.augment=crop")
    setup = _set_up(alone, config)
    found = _measure(alone, config, setup).metrics
    assert found.keys() == set(GENERALIZATION), "no statistics are shared, so there is one kind of error"
    chosen = setup.splits.train.first(64, "")
    images = setup.test_loader.normalize(chosen.images)
    assert found["train_eval_error"] == _error(
        copy.deepcopy(setup.module.model).eval(), images, chosen.labels
    )
    assert found["train_eval_loss"] > 0


def test_the_test_set_is_looked_at_only_when_asked_and_held_out_images_tune(alone):
    words = ("trainer.devices=1", "norm=bn", "data.max_train=256", "data.val_images=64")
    asked = _config(*words, "measure.test=true")
    assert asked.identity() == _config(*words).identity()
    setup = _set_up(alone, asked)
    found = _measure(alone, asked, setup).metrics
    images, labels = _test_set(setup)
    assert found["test_error"] == _error(copy.deepcopy(setup.module.model).eval(), images, labels)
    assert found["val_error_running"] != found["test_error"]
    assert "test_error" not in _measure(alone, _config(*words), setup).metrics
    assert _measure(alone, asked, setup, done=False).metrics["test_error"] is None


def test_frozen_statistics_are_frozen_in_all_three(alone):
    from bnbench.norms import freeze_statistics

    config = _config("trainer.devices=1", "norm=frozen")
    setup = _set_up(alone, config)
    freeze_statistics(setup.module.model)
    found = _measure(alone, config, setup).metrics
    assert len({found[key] for key in STATISTICS[:3]}) == 1


def test_dropout_drops_nothing_and_nothing_moves(alone):
    config = _config("trainer.devices=1", "norm=bn")
    setup = _set_up(alone, config)
    model = setup.module.model
    model.norm1 = nn.Sequential(nn.Dropout(0.9), model.norm1)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, other = (_measure(alone, config, setup).metrics for _ in range(2))
    assert one == other
    plain = copy.deepcopy(model)
    plain.norm1[0].p = 0.0
    assert one["val_error_batch"] == _error(plain.train(), *_test_set(setup))
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())


def test_what_cannot_be_measured_is_null_with_a_remark(alone):
    config = _config("trainer.devices=1", "norm=bn", "data.max_test=63")
    setup = _set_up(alone, config)
    measured = _measure(alone, config, setup)
    assert measured.metrics["val_error_batch"] is measured.metrics["val_images_batch"] is None
    assert measured.metrics["val_error_precise"] is not None
    (remark,) = measured.remarks
    assert "63 evaluation images do not fill one global batch of 64" in remark


class _OneNumber(nn.Module):
    """A user's own norm, with one running variance for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.ones(1).double())

    def forward(self, x):
        return x / self.running_var.sqrt()


def test_a_norm_of_another_shape_is_a_remark(alone):
    config = _config("trainer.devices=1", "norm=bn")
    setup = _set_up(alone, config)
    setup.module.model.norm1 = nn.Sequential(setup.module.model.norm1, _OneNumber())
    measured = _measure(alone, config, setup)
    assert {key for key, value in measured.metrics.items() if value is None} == {"val_error_precise"}
    (remark,) = measured.remarks
    assert remark.startswith("val_error_precise: ") and "running statistics of 1 channels" in remark


def test_a_diverged_run_and_one_that_measures_nothing(alone):
    config = _config("trainer.devices=1", "norm=bn")
    setup = _set_up(alone, config)
    lost = _measure(alone, config, setup, done=False)
    assert lost.metrics == dict.fromkeys([*STATISTICS, *GENERALIZATION])
    nothing = _config("trainer.devices=1", "norm=bn", "measure=none")
    assert _measure(alone, nothing, setup).metrics == {}
    nn.init.constant_(setup.module.model.fc.weight, float("nan"))
    assert set(_measure(alone, config, setup).metrics.values()) == {None, 64}


# Over ranks


def _measure_on_rank(world, *words: str):
    config = _config(f"trainer.devices={world.place.size}", *words)
    return _measure(world, config, _set_up(world, config)).metrics


@pytest.mark.parametrize("nbs", [8, 32, 64])
def test_every_world_measures_the_same(alone, two, nbs):
    """Ghosts of one rank, the device or the span of two: the same images in the same groups."""
    words = ("norm=bn", f"norm.batch_size={nbs}", "data.max_test=200")
    one = _measure_on_rank(alone, *words)
    for found in two.call(_measure_on_rank, *words):
        assert found == pytest.approx(one, rel=1e-9)
    assert one["val_images_batch"] == 192


# The policy `precise`


def _policy_on_rank(world):
    words = ("norm=bn", "norm.statistics=precise", "norm.batch_size=8")
    config = _config(*words, f"trainer.devices={world.place.size}")
    setup = _set_up(world, config)
    model = setup.module.model
    averages = copy.deepcopy(model)
    merge_running_statistics(averages, "mean")
    running = RunningStatistics("precise", precise_over(setup.train_loader, 2))
    trainer = type("Trainer", (), {"global_step": 3, "precision_plugin": _Plain()})
    running.on_validation_start(trainer, setup.module)
    applied = {path: value.clone() for path, value in running_statistics(model).items()}
    running.on_validation_end(trainer, setup.module)
    after, merged = running_statistics(model), running_statistics(averages)
    return applied, all(torch.equal(value, merged[path]) for path, value in after.items()), running.averages


class _Plain:
    forward_context = staticmethod(nullcontext)


def test_precise_is_the_same_on_all_ranks_and_the_averages_go_on(alone, two):
    (one, back, kept), (other, again, _) = two.call(_policy_on_rank)
    assert all(torch.equal(value, other[path]) for path, value in one.items())
    assert back and again and not kept
    single, *_ = _policy_on_rank(alone)
    for path, value in single.items():
        torch.testing.assert_close(one[path], value, rtol=1e-9, atol=1e-12)


def test_statistics_freeze_at_what_the_policy_says(alone):
    config = _config("trainer.devices=1", "norm=frozen", "norm.statistics=precise")
    setup = _set_up(alone, config)
    model, precise = setup.module.model, precise_over(setup.train_loader, 2)
    want = copy.deepcopy(model)
    precise(want)
    trainer = type("Trainer", (), {"global_step": 4, "precision_plugin": _Plain()})
    callback = FreezeStatistics(0.5, 9, "precise", precise)
    callback.on_train_batch_start(trainer, setup.module, None, 0)
    assert not callback.frozen, "step 5 is the first"
    trainer.global_step = 5
    callback.on_train_batch_start(trainer, setup.module, None, 0)
    assert callback.frozen and not tracking_norms(model) and tracking_norms(model, frozen=True)
    for mine, its in zip(running_statistics(model).values(), running_statistics(want).values(), strict=True):
        assert torch.equal(mine, its)


def test_precise_steps_belong_to_a_run_only_where_they_shape_it():
    def identity(*words: str):
        return _config(*words).identity()

    steps = "measure.precise_steps=8"
    assert identity("norm=bn") == identity("norm=bn", steps)
    assert identity("norm=bn", "norm.statistics=precise") != identity(
        "norm=bn", "norm.statistics=precise", steps
    )
    looks = ("measure=landscape", "measure.health_every=7", "measure.statistics=false")
    assert identity("norm=bn", *looks) == identity("norm=bn"), "what only looks is not part of it"


def test_ranks_build_one_network_and_drop_other_parts_of_it(two):
    weights, dropped = zip(*two.call(_first_draws), strict=True)
    assert torch.equal(*weights)
    assert not torch.equal(*dropped)


def _first_draws(world):
    setup = _set_up(world, _config("model.dropout=0.5"), steps=0)
    return setup.module.model.conv1.weight.detach(), F.dropout(torch.ones(64), 0.5)


def test_bad_intervals_are_a_line():
    for key in ("precise_steps", "health_every", "landscape_every"):
        with pytest.raises(ValueError, match=rf"^measure\.{key}=0 must be a whole number of at least 1$"):
            _config(f"measure.{key}=0")


# Training is what it is


def test_a_row_has_the_rate_that_its_last_step_was_taken_with(two, tmp_path):
    """Not the next one's: a cosine's last step has a rate above zero."""
    from bnbench.records import EPOCHS

    two.call(_train, str(tmp_path), "measure=none", "epochs=2", "trainer.precision=fp32")
    (path,) = tmp_path.glob(f"*/{EPOCHS}")
    with path.open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    (config,) = compose_jobs([*WORDS, "epochs=2", "optim.warmup_epochs=0"])
    steps = config.data.max_train // config.global_batch
    want = [scheduled(config.schedule, n * steps - 1, 0, 2 * steps, 1.0) * config.optim.lr for n in (1, 2)]
    assert rates == pytest.approx(want)
    assert rates[-1] > 0


def _train(world, folder: str, *words: str):
    from bnbench.records import RECORD, read_record
    from bnbench.training.run import train_run
    from bnbench.training.setup import DataCache

    plain = [word for word in WORDS if "fp64" not in word]
    words = (*plain, "epochs=1", "optim.warmup_epochs=0", "trainer.threads=1", *words)
    config = compose_jobs([*words, f"dir={folder}", "trainer.save_weights=false"])[0]
    status = train_run(config, world, DataCache(), lambda event: None)
    assert status == "completed"
    world.agree(None)  # rank 0 has written
    return read_record(config.folder / RECORD) if world.leads else None


@pytest.mark.parametrize(
    "words",
    [("norm=bn", "norm.batch_size=8", "recipe.accumulate=2"), ("norm=syncbn",), ("norm=brn",), ("norm=gn",)],
    ids=lambda words: words[0],
)
def test_measuring_leaves_training_as_it_is(two, tmp_path, words):
    looks = ("measure.health_every=1", "measure.landscape_every=1", "measure=landscape")
    seen, _ = two.call(_train, f"{tmp_path}/seen", *words, *looks)
    unseen, _ = two.call(_train, f"{tmp_path}/unseen", *words, "measure=none")
    for key in ("weights_sha256", "final_val_loss", "train_loss"):
        assert seen.metrics[key] == unseen.metrics[key], key
    assert seen.id == unseen.id
    assert unseen.health == {} and seen.health["every"] == 1
    assert {"grad_norm", "input_drift", "gradient_change", "loss_range"} <= seen.health.keys()
    assert ("drift_mean" in seen.health) == (words[0] != "norm=gn")
    for key in ("input_drift", "gradient_change", "loss_range"):
        assert seen.metrics[key] > 0


# What a probe counts


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("norm=gn",),
        ("norm.statistics=precise", "measure.precise_steps=2"),
        ("measure.generalization=false", "global_batch=48"),
        ("measure.precise_steps=2", "data.max_test=200"),
        ("data.val_images=64", "measure.test=true"),
        ("measure=none",),
    ],
    ids=" ".join,
)
def test_the_images_that_a_plan_reckons_with_are_those_that_are_measured(alone, monkeypatch, words):
    config = _config("trainer.devices=1", *words)
    setup = _set_up(alone, config)
    splits, precise = setup.splits, None
    if config.norm.statistics == "precise":
        precise = precise_over(setup.train_loader, config.measure.precise_steps)
    running = RunningStatistics(config.norm.statistics or "mean", precise)
    running.merge(setup.module.model, 0)
    setup.module.validated = Meter().drain()  # a run has just been validated
    seen = []
    stem = next(name for name, part in setup.module.model.named_modules() if isinstance(part, nn.Conv2d))

    def count(module, inputs):
        seen.append(len(inputs[0]))

    setup.module.model.get_submodule(stem).register_forward_pre_hook(count)
    monkeypatch.setattr("bnbench.training.evaluation._error", lambda totals: 0.0)
    monkeypatch.setattr("bnbench.training.evaluation._finite", lambda value, totals: 0.0)
    FinalMeasures(config, alone, setup, running).measure(nullcontext, True)
    sizes = Sizes(len(splits.train), len(splits.validation), len(splits.test))
    assert sum(seen) == measured_images(config, sizes)
