"""What some norms need of training: reference batch, merges, freezing; and statistics that are no numbers."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench import data
from bnbench.compose import compose_jobs
from bnbench.config import RecipeConfig
from bnbench.norms import NORMS, build_norm, merge_running_statistics
from bnbench.training.callbacks import FreezeStatistics, MergeEveryStep, RunningStatistics
from bnbench.training.module import Classifier
from bnbench.training.setup import norm_options
from bnbench.training.trainer import norm_callbacks
from tests.ranks import on_ranks


def _config(*words: str):
    return compose_jobs(["trainer.accelerator=cpu", "logger=none", "data.max_train=128", *words], False)[0]


# Options


class _Groups:
    """A world that makes no process groups."""

    @staticmethod
    def group(ranks: int) -> str:
        return f"group of {ranks}"


@pytest.mark.parametrize("kind", NORMS)
def test_every_choice_gives_its_builder_what_it_takes(kind):
    config = _config(f"norm={kind}", *(["norm.batch_size=8"] if kind == "ghost" else []))
    options = norm_options(config, _Groups(), 100)
    if kind != "none":  # swap_norms carries out `init`
        build_norm(config.kind, 32, **{k: v for k, v in options.items() if k != "process_group"})
    assert ("ghosts" in options) == (kind == "ghost")
    assert options.get("process_group") == ("group of 2" if kind == "syncbn" else None)


def test_the_schedule_of_brn_is_in_fractions_or_in_steps():
    fractions = norm_options(_config("norm=brn"), _Groups(), 100)
    assert fractions["total_steps"] == 100
    words = ("norm.warmup=5", "norm.r_end=40", "norm.d_end=25")
    assert "total_steps" not in norm_options(_config("norm=brn", *words), _Groups(), 100)
    layers = [
        build_norm("brn", 4, **norm_options(_config("norm=brn", *more), _Groups(), 100))
        for more in (("norm.warmup=0.05", "norm.r_end=0.4", "norm.d_end=0.25"), words)
    ]
    for step in range(0, 60, 7):
        bounds = []
        for layer in layers:
            layer.num_batches_tracked.fill_(step)
            bounds.append([bound.item() for bound in layer.bounds()])
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    # A layer sees each of a step's parts.
    parts = norm_options(_config("norm=brn", *words, "recipe.accumulate=4"), _Groups(), 400)
    assert [parts[key] for key in ("warmup", "r_end", "d_end")] == [20, 160, 100]


def test_only_what_needs_it_is_called_between_steps():
    """A hook that does nothing costs a small step 1%."""
    assert norm_callbacks(_config("norm=bn"), 10) == []
    assert norm_callbacks(_config("norm=brn", "trainer.devices=1"), 10) == []
    assert norm_callbacks(_config("norm=frozen", "norm.after=0"), 10) == []
    assert [type(c) for c in norm_callbacks(_config("norm=brn"), 10)] == [MergeEveryStep]
    (freeze,) = norm_callbacks(_config("norm=frozen", "norm.after=0.25", "epochs=3"), 10)
    assert (type(freeze), freeze.first) == (FreezeStatistics, math.ceil(0.25 * 30))


# The reference batch of Virtual BN


def _reference(world, *words: str):
    from bnbench.training.setup import DataCache, set_up

    return set_up(_config(*words), world, DataCache()).module.model.reference


def test_the_reference_is_the_first_of_a_permutation_by_the_seed_and_the_same_on_all_ranks():
    words = ["norm=vbn", "norm.reference_size=5", "data.augment=crop", "seed=3"]
    first, second = on_ranks(2, _reference, *words)
    assert torch.equal(first, second)
    config = _config(*words)
    images = data.load(config.data).train.images[data.reference_images(128, 5, seed=3)]
    by_hand = images / 255
    by_hand = (by_hand - torch.tensor(config.data.mean).view(3, 1, 1)) / torch.tensor(config.data.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(first, by_hand, rtol=1e-5, atol=1e-5)


def test_a_longer_reference_begins_with_a_shorter_one_and_a_seed_has_its_own():
    one, more = (data.reference_images(100, count, seed=1).tolist() for count in (5, 20))
    assert more[:5] == one
    assert len(set(more)) == 20
    assert data.reference_images(100, 20, seed=2).tolist() != more
    with pytest.raises(ValueError, match=r"norm\.reference_size=101 is more than the 100"):
        data.reference_images(100, 101, seed=0)


# Statistics that freeze


class _Averaged(nn.Module):
    """A module whose moving average is no part of it, as Classifier's."""

    def __init__(self, model: nn.Module, average: nn.Module) -> None:
        super().__init__()
        self.model, self._average = model, (average,)

    @property
    def evaluated(self) -> nn.Module:
        return self._average[0]


def test_statistics_freeze_at_their_step_and_the_affine_part_does_not():
    model = nn.Sequential(build_norm("frozen", 3, after=0.5))
    (norm,) = model
    average = copy.deepcopy(model)
    module = _Averaged(model, average)
    callback = FreezeStatistics(0.5, 7, "mean")
    seen = []
    for step in range(7):
        callback.on_train_batch_start(SimpleNamespace(global_step=step), module, None, step)
        assert norm.frozen == average[0].frozen == (step >= 4)
        model(torch.randn(4, 3, 5, 5) + step).square().mean().backward()
        seen.append(norm.running_mean.clone())
    assert callback.first == 4
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, True, True, False, False, False]
    assert norm.weight.requires_grad
    assert norm.weight.grad is not None


# Poison


def _poisoned(world, policy: str, rank: int):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    if world.place.rank == rank:
        model[1].running_var[1] = math.inf
    running = RunningStatistics(policy)
    running.merge(model, 12)
    return running.poisoned


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_learns_of_statistics_that_are_no_numbers(rank):
    """Wherever they arose: the merge brings them to all, and all must stop together."""
    words = "running statistics not finite after step 12: 1.running_var"
    assert on_ranks(2, _poisoned, "mean", rank) == [words, words]
    assert on_ranks(2, _poisoned, "rank0", rank) == ([words, words] if rank == 0 else [None, None])


def test_the_first_poison_is_kept_and_health_is_silent():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    running = RunningStatistics("mean")
    running.merge(model, 1)
    assert running.poisoned is None
    model[1].running_mean[0] = math.nan
    running.merge(model, 2)
    model[0].running_mean[0] = math.nan
    running.merge(model, 3)
    assert running.poisoned == "running statistics not finite after step 2: 1.running_mean"
    nothing = RunningStatistics("mean")
    nothing.merge(nn.Linear(2, 2), 1)
    assert nothing.poisoned is None
    merge_running_statistics(nn.Linear(2, 2), "mean")


# Auxiliary heads


class _Heads(nn.Module):
    """Main logits and two auxiliary ones in training, of which one is off; logits alone in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x):
        main, aux = (head(x) for head in self.heads)
        return (main, None, aux) if self.training else main


class _Manual(Classifier):
    """A Classifier without a trainer."""

    def manual_backward(self, loss, *_, **__):
        loss.backward()


def test_auxiliary_heads_add_their_weighted_loss_and_no_error():
    torch.manual_seed(0)
    model = _Heads()
    plain = RecipeConfig(label_smoothing=0.0, zero_gamma=False, ema=None, accumulate=1, clip_norm=None)
    module = _Manual(model, lambda _: None, plain, aux_weight=0.3)
    nothing = SimpleNamespace(zero_grad=lambda: None, step=lambda: None, param_groups=[{"lr": 0.25}])
    module._stepped = (nothing, nothing)
    images, labels = torch.randn(8, 4), torch.randint(3, (8,))
    module.training_step((images, labels), 0)
    main, aux = (head(images) for head in model.heads)
    want = F.cross_entropy(main, labels) + 0.3 * F.cross_entropy(aux, labels)
    assert module.lr == 0.25
    totals = module.window.drain()
    assert totals.loss == pytest.approx(want.item(), rel=1e-6)
    assert totals.error == pytest.approx(100 * (main.argmax(1) != labels).double().mean().item())
    got = model.heads[1].weight.grad
    (alone,) = torch.autograd.grad(F.cross_entropy(aux, labels), model.heads[1].weight)
    torch.testing.assert_close(got, 0.3 * alone)
    module.eval()
    module.validation_step((images, labels), 0)
    assert module.validation.drain().error == totals.error
