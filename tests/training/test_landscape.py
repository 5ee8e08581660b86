"""The landscape signals: their formulas by hand, and laws of the extremes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.norms import build_norm
from bnbench.training.callbacks import Landscape, Series
from bnbench.training.callbacks.landscape import LENGTHS, input_drift, input_moments
from tests.ranks import WarmWorld

CLOSE = {"rel": 1e-9, "abs": 1e-12}


def _net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), build_norm("bn", 4), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(4, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).double()


def _batch(images: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 9, 9, generator=generator, dtype=torch.float64), torch.randint(
        5, (images,), generator=generator
    )


def _module(net: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(model=net, recipe=SimpleNamespace(label_smoothing=0.1), aux_weight=0.0)


def _trainer(rate: float) -> SimpleNamespace:
    return SimpleNamespace(
        global_step=0,
        logger=None,
        optimizers=[SimpleNamespace(param_groups=[{"lr": rate}])],
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )


def _measure(net: nn.Module, series: Series, batch, rate: float = 0.3, probe=None) -> dict[str, float]:
    Landscape(1, series, probe).on_train_batch_start(_trainer(rate), _module(net), batch, 0)
    return {signal: value for _, signal, _, value in series.rows}


def test_the_gradient_signals_by_hand(tmp_path):
    net, batch = _net(), _batch()
    found = _measure(net, Series(tmp_path), batch)

    def at(length: float):
        moved = copy.deepcopy(net).train()
        with torch.no_grad():
            for p, g in zip(moved.parameters(), gradient, strict=True):
                p -= length * g
        loss = F.cross_entropy(moved(batch[0]), batch[1], label_smoothing=0.1)
        return loss.item(), torch.autograd.grad(loss, list(moved.parameters()))

    gradient = [torch.zeros_like(p) for p in net.parameters()]
    start, gradient = at(0.0)
    losses, others = zip(*(at(0.3 * length) for length in LENGTHS), strict=True)
    flat = torch.cat([g.flatten() for g in gradient])
    changes = [
        ((torch.cat([g.flatten() for g in other]) - flat).norm() / flat.norm()).item() for other in others
    ]
    assert found["gradient_change"] == pytest.approx(max(changes), **CLOSE)
    assert found["loss_range"] == pytest.approx(max(start, *losses) - min(start, *losses), **CLOSE)


def test_a_step_of_no_length_changes_nothing_even_with_dropout(tmp_path):
    found = _measure(_net(dropout=0.5), Series(tmp_path), _batch(), rate=0.0)
    assert found == {"gradient_change": 0.0, "loss_range": 0.0}


def test_a_gradient_that_is_no_number_is_none(tmp_path):
    images, labels = _batch()
    found = _measure(_net(), Series(tmp_path), (images * float("nan"), labels))
    assert all(value != value for value in found.values())


def test_measuring_moves_nothing(tmp_path):
    net, batch = _net(dropout=0.5).train(), _batch()
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    callback = Landscape(1, Series(tmp_path), batch[0])
    for _ in range(2):
        callback.on_train_batch_start(_trainer(0.3), _module(net), batch, 0)
    assert all(torch.equal(value, before[path]) for path, value in net.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
    assert net.training and not any(m._forward_pre_hooks for m in net.modules())


def test_the_drift_of_inputs_by_hand(tmp_path):
    """Doubling a layer doubles what the next one sees: mean and deviation have moved by themselves."""
    net, (images, labels) = _net(), _batch()
    series = Series(tmp_path)
    callback = Landscape(1, series, images)
    module = _module(net)
    callback.on_train_batch_start(_trainer(0.1), module, (images, labels), 0)
    assert not any(signal == "input_drift" for _, signal, *_ in series.rows), "nothing to compare with"
    callback.on_train_batch_start(_trainer(0.1), module, (images, labels), 0)
    drifts = {place: value for _, signal, place, value in series.rows if signal == "input_drift"}
    assert drifts == {"4": 0.0, "7": 0.0}, "not the first layer, whose input are the images"
    before = input_moments(net.train(), images)
    with torch.no_grad():
        net[4].weight *= 2
        net[4].bias *= 2
    now = input_moments(net, images)
    mean, std = before["7"]
    by_hand = ((mean.square() + std.square()).sum() / std.square().sum()).sqrt().item()
    assert input_drift(before, now)["7"] == pytest.approx(by_hand, **CLOSE)
    x = net[:5](images)
    pooled = x.mean((2, 3))
    torch.testing.assert_close(now["7"][0], pooled.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(now["7"][1], pooled.std(0, correction=0), rtol=1e-9, atol=1e-12)


def _on_rank(world):
    """Each rank has half of the images; a network without batch statistics, whose loss is their mean."""
    net = _net()
    net[1] = nn.Identity()
    images, labels = _batch()
    mine = slice(world.place.rank, None, world.place.size)
    callback = Landscape(1, Series(None), images[mine])
    moments = input_moments(net, images[mine])
    module = _module(net)
    return moments, callback._along_gradient(module, (images[mine], labels[mine]), 0.3, nullcontext)


def test_ranks_measure_what_one_rank_would_of_all_their_images():
    with WarmWorld(2) as world:
        one, other = world.call(_on_rank)
    moments, signals = _on_rank(SimpleNamespace(place=SimpleNamespace(rank=0, size=1)))
    assert one[1] == other[1] == pytest.approx(signals, **CLOSE)
    for path, (mean, std) in moments.items():
        torch.testing.assert_close(one[0][path][0], mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one[0][path][1], std, rtol=1e-9, atol=1e-12)


def test_a_checkpoint_gets_what_it_keeps_on_the_cpu():
    mean, std = torch.zeros(4), torch.ones(4)
    callback = Landscape(1, Series(None), None)
    callback._before = {"2": (SimpleNamespace(cpu=lambda: mean), SimpleNamespace(cpu=lambda: std))}  # a GPU's
    assert callback.state_dict() == {"before": {"2": (mean, std)}}
