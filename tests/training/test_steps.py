"""What a step is made of: accumulation, clipping, smoothing, the weights' average."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.data.loader import step_places
from bnbench.models import build_model
from bnbench.norms import swap_norms
from bnbench.span import span_of
from bnbench.training.average import WeightAverage
from bnbench.training.module import Classifier
from bnbench.training.optim import build_optimizer


def _config(*words: str) -> RunConfig:
    (config,) = compose_jobs(["trainer.devices=1", "optim.warmup_epochs=0", *words], multirun=False)
    return config


def _module(config: RunConfig, norm: str = "bn") -> Classifier:
    """A Classifier outside a Trainer, with what it takes of one."""
    torch.manual_seed(0)
    model = build_model("resnet8", 10, width=4).double()
    swap_norms(model, norm)
    module = Classifier(model, lambda net: build_optimizer(net, config, 10), config.recipe)
    module.trainer = SimpleNamespace(strategy=None)  # type: ignore[assignment]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
    ([optimizer], [schedule]) = module.configure_optimizers()
    module.optimizers, module.lr_schedulers = (lambda: optimizer), (lambda: schedule)  # type: ignore[method-assign]
    module.on_fit_start()
    return module


def _batches(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 8, 8, generator=draws).double(), torch.randint(10, (size,), generator=draws))
        for _ in range(count)
    ]


def _trained(module: Classifier, batches: list[Any]) -> dict[str, torch.Tensor]:
    for number, batch in enumerate(batches):
        module.training_step(batch, number)
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_batches_are_one_step_of_the_whole_where_no_statistics_are_shared(parts):
    whole = _batches(2, 6 * parts)
    split = [(x, y) for xs, ys in whole for x, y in zip(xs.chunk(parts), ys.chunk(parts), strict=True)]
    accumulated = _trained(_module(_config(f"recipe.accumulate={parts}", "global_batch=36"), "gn"), split)
    assert _distance(accumulated, _trained(_module(_config(), "gn"), whole)) < 1e-12


def test_accumulation_does_not_enlarge_the_batch_that_shares_statistics():
    whole = _batches(1, 12)
    split = [(x, y) for xs, ys in whole for x, y in zip(xs.chunk(2), ys.chunk(2), strict=True)]
    accumulated = _trained(_module(_config("recipe.accumulate=2")), split)
    assert _distance(accumulated, _trained(_module(_config()), whole)) > 1e-4
    # As two groups of ghosts would: that is the same NBS.
    ghosts = _module(_config())
    swap_norms(ghosts.model, "ghost", ghosts=2)
    ghosts._stepped = build_optimizer(ghosts.model, _config(), 10)
    interleaved = [tuple(torch.stack(t.chunk(2), 1).flatten(0, 1) for t in pair) for pair in whole]
    assert _distance(accumulated, _trained(ghosts, interleaved)) < 1e-12


def test_accumulation_makes_the_batch_smaller_and_never_the_nbs_larger():
    config = _config("global_batch=64", "recipe.accumulate=4", "trainer.devices=2")
    assert (config.per_device_batch, config.nbs) == (8, 8)
    assert _config("norm=syncbn", "recipe.accumulate=4", "trainer.devices=2").nbs == 16
    with pytest.raises(ValueError, match=r"norm\.batch_size=64 cannot .*accumulate=4 .*never enlarges NBS"):
        _config("global_batch=64", "recipe.accumulate=4", "norm.batch_size=64")
    with pytest.raises(ValueError, match=r"not divisible by the 2 ranks .* x recipe\.accumulate=3"):
        _config("recipe.accumulate=3", "trainer.devices=2")


@pytest.mark.parametrize(
    ("ranks", "parts", "nbs"), [(1, 4, 16), (2, 2, 16), (4, 2, 16), (2, 4, 4), (4, 1, 64)]
)
def test_the_groups_of_a_step_are_those_of_any_world(ranks, parts, nbs):
    """Image i of a step of 64 belongs to group i mod (64 / NBS), in whatever part and on whatever rank."""
    span = span_of(nbs, 64 // ranks // parts, ranks)
    step = torch.arange(64)
    taken = [[step[place] for place in step_places(span, rank, ranks, parts)] for rank in range(ranks)]
    assert sorted(torch.cat([t for parts_ in taken for t in parts_]).tolist()) == list(range(64))
    groups = 64 // nbs
    for part in range(parts):
        of_part = torch.cat([images[part] for images in taken])
        assert set((of_part % parts).tolist()) == {part}, "running statistics see the parts in one order"
        for first in range(0, ranks, span.ranks):  # ranks that share statistics
            shared = [taken[rank][part] for rank in range(first, first + span.ranks)]
            for ghost in range(span.ghosts):
                together = torch.cat([images[ghost :: span.ghosts] for images in shared])
                assert len(together) == nbs
                assert len(set((together % groups).tolist())) == 1


def test_clipping_bounds_the_norm_of_all_gradients_together():
    batches = _batches(1, 8)
    free, clipped = _module(_config()), _module(_config("recipe.clip_norm=0.01"))
    for module in (free, clipped):
        _trained(module, batches)

    def norm(module: Classifier) -> float:
        return torch.stack([p.grad.norm() for p in module.model.parameters()]).norm().item()

    assert norm(free) > 0.1
    assert norm(clipped) == pytest.approx(0.01, rel=1e-4)


def test_label_smoothing_is_in_the_training_loss_and_not_in_the_validated_one():
    (batch,) = _batches(1, 16)
    smooth, plain = _module(_config("recipe.label_smoothing=0.3")), _module(_config())
    for module in (smooth, plain):
        module.training_step(batch, 0)
        module.model.load_state_dict(_module(_config()).model.state_dict())
        module.eval()
        module.validation_step(batch, 0)
    assert smooth.window.drain().loss != plain.window.drain().loss
    assert smooth.validation.drain().loss == plain.validation.drain().loss


def test_the_average_is_the_recurrence_over_weights_and_running_statistics():
    decay, module = 0.7, _module(_config("recipe.ema=0.7"))
    want = {name: value.clone() for name, value in module.model.state_dict().items()}
    for number, batch in enumerate(_batches(5, 8)):
        module.training_step(batch, number)
        for name, value in module.model.state_dict().items():
            if value.is_floating_point():
                want[name] = decay * want[name] + (1 - decay) * value
    got = module.evaluated.state_dict()
    assert module.evaluated is not module.model
    assert any(name.endswith("running_var") for name in want)
    for name, value in want.items():
        if value.is_floating_point():
            torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12)


def test_the_average_leaves_training_alone_and_is_what_is_validated():
    batches = _batches(4, 8)
    averaged, plain = _module(_config("recipe.ema=0.5")), _module(_config())
    assert _distance(_trained(averaged, batches), _trained(plain, batches)) == 0
    x, y = batches[0]
    averaged.eval()
    averaged.validation_step((x, y), 0)
    expected = F.cross_entropy(averaged.average.model(x), y).item()
    assert averaged.validation.drain().loss == pytest.approx(expected, rel=1e-12)
    assert not averaged.evaluated.training


def test_an_average_is_linear_in_what_it_averages():
    """So that ranks may merge their statistics before an evaluation instead of at every step."""
    torch.manual_seed(0)
    ranks = [nn.BatchNorm2d(3).double() for _ in range(2)]
    merged = nn.BatchNorm2d(3).double()
    averages = [WeightAverage(copy.deepcopy(norm), 0.9) for norm in (*ranks, merged)]
    for _ in range(4):
        for norm in ranks:
            norm(torch.randn(4, 3, 2, 2).double())
        merged.running_mean.copy_(sum(norm.running_mean for norm in ranks) / 2)
        for average, norm in zip(averages, (*ranks, merged), strict=True):
            average.update(norm)
    late = sum(average.model.running_mean for average in averages[:2]) / 2
    torch.testing.assert_close(late, averages[2].model.running_mean, rtol=1e-12, atol=1e-12)
