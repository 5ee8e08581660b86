"""Health signals: what they are by hand, how rarely they are taken, and what they may cost in collectives."""

from __future__ import annotations

import copy
import csv
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from bnbench.norms import VirtualBatchNet, build_norm, freeze_statistics
from bnbench.records import HEALTH
from bnbench.training.callbacks import Health, Series
from bnbench.training.callbacks.health import drift, stages
from bnbench.training.callbacks.landscape import input_moments
from bnbench.training.callbacks.look import NormInput
from bnbench.training.counting import Counting
from tests.ranks import WarmWorld

CLOSE = {"rel": 1e-9, "abs": 1e-12}


def _net(kind: str = "bn", **options) -> nn.Sequential:
    torch.manual_seed(0)
    norm = build_norm(kind, 4, **options)
    layers = [nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 49, 5)]
    return nn.Sequential(*layers).double()


def _batch(seed: int = 0, images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 + torch.randn(images, 3, 9, 9, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (images,), generator=generator)


class _Loop:
    """Enough of a trainer and of a module to take steps with one callback."""

    def __init__(self, network: nn.Module, callback) -> None:
        self.model, self.callback = network.train(), callback
        self.trainer = SimpleNamespace(global_step=0, logger=None)
        self.trainer.precision_plugin = SimpleNamespace(forward_context=nullcontext)

    def step(self, batch, batch_idx: int = 0, steps: bool = True) -> None:
        self.callback.on_train_batch_start(self.trainer, self, batch, batch_idx)
        self.model.zero_grad()
        F.cross_entropy(self.model(batch[0]), batch[1]).backward()
        self.callback.on_after_backward(self.trainer, self)
        self.trainer.global_step += steps
        self.callback.on_train_batch_end(self.trainer, self, None, batch, batch_idx)


def _signals(series: Series) -> dict[tuple[str, str], float]:
    return {(signal, place): value for _, signal, place, value in series.rows}


# By hand


@pytest.mark.parametrize("ghosts", [1, 2])
def test_one_measurement_by_hand(tmp_path, ghosts):
    net = _net("bn", ghosts=ghosts)
    net[1].running_mean += torch.randn(4)
    net[1].running_var *= 3
    images, labels = _batch()
    before, series = copy.deepcopy(net), Series(tmp_path)
    loop = _Loop(net, Health(1, series))
    loop.step((images, labels))
    found = _signals(series)

    groups = [before[0](images)[g::ghosts] for g in range(ghosts)]
    std = (before[1].running_var + 1e-5).sqrt()
    away = torch.stack([(x.mean((0, 2, 3)) - before[1].running_mean) / std for x in groups])
    ratio = torch.stack([(x.var((0, 2, 3)) + 1e-5) / std.square() for x in groups])
    assert found["drift_mean", "1"] == pytest.approx(away.square().mean().sqrt().item(), **CLOSE)
    assert found["drift_var", "1"] == pytest.approx(ratio.log().abs().mean().item(), **CLOSE)

    assert ("rank_spread", "1") not in found, "of one rank there is none"
    whole = math.sqrt(sum(v**2 for (signal, _), v in found.items() if signal == "grad_norm"))
    assert whole == pytest.approx(
        torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item(), **CLOSE
    )


def test_the_gap_is_between_the_two_modes_before_the_step(tmp_path):
    net = _net()
    net[3].p = 0.0
    net[1].running_var *= 9
    images, labels = _batch()
    eval_loss = F.cross_entropy(copy.deepcopy(net).eval()(images), labels)
    train_loss = F.cross_entropy(copy.deepcopy(net).train()(images), labels)
    series = Series(tmp_path)
    _Loop(net, Health(1, series)).step((images, labels))
    assert _signals(series)["eval_gap", "model"] == pytest.approx((eval_loss - train_loss).item(), **CLOSE)


def test_there_is_no_drift_from_what_the_batch_is(tmp_path):
    net, batch = _net(momentum=1.0), _batch()
    series = Series(tmp_path)
    loop = _Loop(net, Health(1, series))
    loop.step(batch)  # the averages are now those of the batch
    loop.step(batch)
    *_, first, second = [value for _, signal, _, value in series.rows if signal == "drift_mean"]
    assert first > 0.1 and second == pytest.approx(0, abs=1e-12)
    assert [v for _, s, _, v in series.rows if s == "drift_var"][-1] == pytest.approx(0, abs=1e-12)


def test_frozen_norms_are_watched_and_channel_norms_have_gradients_alone(tmp_path):
    net, series = _net(), Series(tmp_path)
    freeze_statistics(net)
    _Loop(net, Health(1, series)).step(_batch())
    assert {"drift_mean", "drift_var", "eval_gap", "grad_norm"} == {signal for signal, _ in _signals(series)}
    series = Series(tmp_path)
    _Loop(_net("gn", num_groups=2), Health(1, series)).step(_batch())
    assert {signal for signal, _ in _signals(series)} == {"grad_norm"}


def test_evonorm_b0_has_no_running_mean_to_drift_from(tmp_path):
    series = Series(tmp_path)
    _Loop(_net("evonorm_b0"), Health(1, series)).step(_batch())
    assert {"drift_var", "eval_gap", "grad_norm"} == {signal for signal, _ in _signals(series)}


def test_ranks_that_share_statistics_are_one_batch():
    """Whatever the halves of a batch are: their union's drift is that of the whole batch."""
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64) + torch.arange(8).view(8, 1, 1, 1)
    running = {
        "running_mean": torch.randn(3).double(),
        "running_var": torch.rand(3).double() + 1,
        "eps": 1e-5,
    }

    def seen(part: torch.Tensor) -> NormInput:
        var, mean = torch.var_mean(part, (0, 2, 3), correction=0)
        return NormInput(mean[None], var[None], part.numel() / 3, **running)

    whole, halves = drift([seen(x)]), drift([seen(x[:4]), seen(x[4:])], span=2)
    assert halves["drift_mean"] == pytest.approx(whole["drift_mean"], **CLOSE)
    assert halves["drift_var"] == pytest.approx(whole["drift_var"], **CLOSE)
    apart = drift([seen(x[:4]), seen(x[4:])])
    assert apart["drift_mean"] != pytest.approx(whole["drift_mean"], rel=1e-3)
    means = torch.stack([x[:4].mean((0, 2, 3)), x[4:].mean((0, 2, 3))])
    spread = ((means[0] - means[1]) / 2**0.5).square() / (running["running_var"] + 1e-5)
    assert halves["rank_spread"] == pytest.approx(spread.mean().sqrt().item(), **CLOSE)


# When, and at what price


def test_it_looks_at_its_interval_and_leaves_no_hook(tmp_path):
    net, series = _net(), Series(tmp_path)
    loop = _Loop(net, Health(3, series))
    for _ in range(7):
        loop.step(_batch())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert sorted({step for step, *_ in series.rows}) == [3, 6]


def test_accumulated_steps_are_looked_at_on_their_last_batch(tmp_path):
    series, net = Series(tmp_path), _net()
    loop = _Loop(net, Health(1, series, parts=2))
    loop.step(_batch(), batch_idx=0, steps=False)
    assert not series.rows
    loop.step(_batch(), batch_idx=1)
    assert {step for step, *_ in series.rows} == {1}


def test_looking_moves_nothing(tmp_path):
    one, other = _net("bn", ghosts=2), _net("bn", ghosts=2)
    seen, unseen = _Loop(one, Health(1, Series(tmp_path))), _Loop(other, Health(1000, Series(None)))
    for loop in (seen, unseen):
        torch.manual_seed(3)  # dropout draws
        for step in range(3):
            loop.step(_batch(step))
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)
    for (path, mine), (_, its) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(mine, its), path


def test_a_compiled_network_is_looked_at_too(tmp_path):
    """Hooks that come after its compilation it does not run: it is looked at in a pass of its own."""
    one, other = _net(), _net()
    one.compile(backend="eager")
    found = []
    for folder, net in (("one", one), ("other", other)):
        (tmp_path / folder).mkdir()
        torch.manual_seed(3)
        series = Series(tmp_path / folder)
        loop = _Loop(net, Health(2, series))
        for step in range(2):
            loop.step(_batch(step))
        found.append(_signals(series))
    assert found[0] == pytest.approx(found[1], **CLOSE)
    for (path, mine), (_, its) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12, msg=path)


def _on_rank(world, folder: str, sync: bool):
    """Signals, and the collectives of two steps of which the second is measured."""
    from pathlib import Path

    net = _net("bn", **({"process_group": dist.group.WORLD} if sync else {}))
    series = Series(Path(folder) if world.leads else None)
    loop = _Loop(net, Health(2, series, ranks=2 if sync else 1))
    counts = []
    for step in range(2):
        with Counting() as seen:
            loop.step(_batch(10 * step + world.place.rank))
        counts.append(len(seen.collectives))
    return _signals(series), counts


@pytest.mark.parametrize("sync", [False, True])
def test_a_measurement_is_one_collective(tmp_path, sync):
    with WarmWorld(2) as world:
        (found, counts), (nothing, others) = world.call(_on_rank, str(tmp_path), sync)
    assert counts == others == ([2, 3] if sync else [0, 1])
    assert not nothing and not list(tmp_path.glob("*/"))
    assert {"drift_mean", "drift_var", "rank_spread", "eval_gap", "grad_norm"} == {s for s, _ in found}


# Places, files, medians


def test_stages_hold_every_parameter_once():
    from bnbench.models import build_model

    for name in ("resnet8", "resnet18", "cifar_vgg11", "cifar_densenet"):
        network = build_model(name, 10)
        parts = stages(network)
        placed = [id(p) for parameters in parts.values() for p in parameters]
        assert sorted(placed) == sorted(id(p) for p in network.parameters()), name
        assert len(parts) >= 5 or name == "resnet8"
    assert list(stages(build_model("resnet8", 10))) == [
        "conv1",
        "norm1",
        "fc",
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    assert list(stages(build_model("resnet18", 10))) == [
        "conv1",
        "bn1",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "fc",
    ]
    assert list(stages(nn.Linear(2, 2))) == ["model"]


def test_places_have_the_same_names_under_virtual_bn(tmp_path):
    net, series = _net("vbn"), Series(tmp_path)
    wrapped = VirtualBatchNet(net, _batch()[0]).double()
    _Loop(wrapped, Health(1, series)).step(_batch())
    assert {place for _, place in _signals(series)} == set(stages(net)) == {"0", "1", "5"}
    assert input_moments(wrapped, _batch()[0]).keys() >= {"5"}


def test_the_series_is_on_disk_and_its_medians_are_of_the_second_half(tmp_path):
    series = Series(tmp_path)
    points = []
    trainer = SimpleNamespace(
        logger=SimpleNamespace(log_metrics=lambda point, step: points.append((step, point)))
    )
    for step, value in enumerate((9.0, 8.0, 1.0, math.nan, 3.0)):
        series.add(trainer, step, {"drift": {"a": value, "b": 10.0}, "gap": {"model": value}})
    with (tmp_path / HEALTH).open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"step": "0", "signal": "drift", "place": "a", "value": "9"}
    assert len(rows) == 15
    assert series.medians() == {"drift": {"a": 2.0, "b": 10.0}, "gap": {"model": 2.0}}
    assert series.typical("gap") == 8.0  # of 9, 8, 1, 3, and one that is no number: more than any
    assert series.typical("nothing") is None
    for step in range(4):
        series.add(trainer, 5 + step, {"gap": {"model": math.inf}})
    assert series.typical("gap") is None  # most were infinite
    assert points[0] == (
        0,
        {"health/drift/a": 9.0, "health/drift/b": 10.0, "health/drift": 9.5, "health/gap": 9.0},
    )
    assert points[3][1]["health/drift"] == 10.0
