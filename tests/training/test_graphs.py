"""A captured step on a machine without a GPU: what torch captures is stood in for by what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.compose import compose_jobs
from bnbench.training.counting import Counting
from bnbench.training.graphs import CapturedStep


def make_graphed_callables(step, samples):
    """As torch's: a few passes over the samples, then a forward that writes its results to the same places."""
    eager = step.forward
    for _ in range(3):
        eager(*samples)[0].backward()
    places = [torch.empty_like(each) for each in eager(*samples)]

    def replay(*inputs):
        step.replays = getattr(step, "replays", 0) + 1
        results = eager(*inputs)
        with torch.no_grad():
            for place, result in zip(places, results, strict=True):
                place.copy_(result)
        return _At.apply(results[0], places[0]), places[1].detach()

    step.forward = replay
    for parameter in step.parameters():
        parameter.grad = None
    return step


class _At(torch.autograd.Function):
    """A result that lies at `place`."""

    @staticmethod
    def forward(ctx, result, place):
        return place.detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork_cpu())


fork_cpu = torch.random.fork_rng


def judge(output, labels):
    return F.cross_entropy(output, labels), output


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )


def trained(step, model, steps=4):
    torch.manual_seed(1)
    optimizer, kept = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        images, labels = torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5
        loss, logits = step(images, labels)
        kept.append((loss.detach(), logits.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_captured_step_trains_what_the_step_does():
    plain, captured = network(), network()
    expected = trained(lambda images, labels: judge(plain(images), labels), plain)
    step = CapturedStep(captured, judge)
    found = trained(step, captured)
    assert step._graphed.replays == 4
    for name, tensor in expected[1].items():  # running statistics and what dropout draws, too
        assert torch.equal(found[1][name], tensor), name
    for (loss, logits), (loss_, logits_) in zip(found[0], expected[0], strict=True):
        assert torch.equal(loss, loss_) and torch.equal(logits, logits_), "a later replay wrote over them"


def test_a_step_that_is_looked_into_runs_as_it_stands():
    model = network()
    step = CapturedStep(model, judge)
    trained(step, model, steps=1)
    seen = []
    handle = model.register_forward_hook(lambda *all: seen.append(1))
    trained(step, model, steps=1)
    handle.remove()
    with Counting() as counting:
        trained(step, model, steps=1)
    assert seen == [1] and counting.flops > 0 and step._graphed.replays == 1


GRAPHS = ("trainer.cuda_graphs=true", "trainer.devices=1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer.devices=2",), "with 2 ranks"),
        (("trainer.compile=true",), "trainer.compile=true"),
        (("recipe.accumulate=2",), "recipe.accumulate=2"),
        (("norm=frozen", "norm.after=0.5"), "norm.after=0.5"),
    ],
)
def test_what_a_captured_step_would_not_follow_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        compose_jobs([*GRAPHS, *words], multirun=False)


def test_only_a_run_with_graphs_has_them_in_its_identity():
    (without,) = compose_jobs(["trainer.devices=1"], multirun=False)
    (captured,) = compose_jobs(GRAPHS, multirun=False)
    assert "cuda_graphs" not in without.trainer.execution()
    assert captured.trainer.execution()["cuda_graphs"] is True
    assert without.folder != captured.folder
