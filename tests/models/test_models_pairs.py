"""Every norm on every model trains a step, and leaves the model as it found it; on two real ranks that stay up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bnbench import catalog
from bnbench.norms import NORMS
from tests.ranks import WarmWorld

IMAGES = 2  # a rank; two ghosts of two images in twice as many
OPTIONS: dict[str, dict[str, Any]] = {"ghost": {"ghosts": 2}}
# One of each builder, and small. The others have the same layers in other numbers.
QUICK = (
    "resnet8",
    "cifar_densenet",
    "cifar_vgg11",
    "cifar_inception",
    "resnet18",
    "densenet121",
    "googlenet",
)


def forms() -> list[Any]:
    every: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in catalog.MODELS]
    every += [(name, {"preact": True}) for name in ("resnet8", "resnet20", "resnet18", "resnet50")]
    every += [("inception_v3", {"aux_weight": 0.0})]
    return [
        pytest.param(
            name, options, id="-".join((name, *options)), marks=() if name in QUICK else pytest.mark.slow
        )
        for name, options in every
    ]


@pytest.fixture(scope="module")
def world() -> Iterator[WarmWorld]:
    with WarmWorld(2, seconds=280) as started:
        yield started


@pytest.mark.parametrize(("name", "options"), forms())
def test_every_kind_trains_a_step_and_a_swap_back_restores_the_model(world, name, options):
    for problems in world.call(_train_all_kinds, name, options):
        assert problems == {}


def _train_all_kinds(world: Any, name: str, options: dict[str, Any]) -> dict[str, str]:
    """What goes wrong, by kind, in a step of SGD; the ranks take turns at the kinds.

    Two images of the least size that leaves instance norm two values: below it, a layer without centring or
    with many groups divides by what two pixels differ in, and a deep net overflows. Every parameter must get
    a gradient, which DDP needs too. One instance serves all kinds: building a deep net takes longer than
    training it for a step.
    """
    import torch
    from torch import nn

    from bnbench.models import build_model
    from bnbench.norms import swap_norms

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = build_model(name, 5, **options)
        if catalog.MODELS[name].family == "vgg":  # 120 million weights without a norm among them
            model.classifier = nn.Linear(512 * 7 * 7, 5)
        return model

    model = build()
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    smallest, one_image = catalog.MODELS[name].sides(options.get("aux_weight"))
    problems = {}
    for number, kind in enumerate(NORMS):
        if kind != "syncbn" and number % world.place.size != world.place.rank:
            continue
        side = one_image if kind == "in" or one_image < 299 else smallest
        torch.manual_seed(1 + world.place.rank)
        try:
            swap_norms(model, kind, **OPTIONS.get(kind, {}))
            problem = _step(model, kind, side)
            swap_norms(model, "bn")
            model.load_state_dict(start)
        except Exception as error:
            model = build()
            problem = f"{type(error).__name__}: {error}"
        if problem:
            problems[kind] = problem
    return problems


def _step(model: Any, kind: str, side: int) -> str:
    import torch
    from torch.nn.functional import cross_entropy

    from bnbench.models import logits_of
    from bnbench.norms import VirtualBatchNet

    images = torch.randn(IMAGES * (2 if kind == "ghost" else 1), 3, side, side)
    labels = torch.arange(len(images)) % 5
    net = VirtualBatchNet(model, torch.randn(IMAGES, 3, side, side)) if kind == "vbn" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    logits, *others = logits_of(net.train()(images))
    loss = cross_entropy(logits, labels)
    for other in others:
        loss = loss + getattr(model, "aux_weight", 0.0) * cross_entropy(other, labels)
    loss.backward()
    without = [path for path, parameter in model.named_parameters() if parameter.grad is None]
    optimizer.step()
    finite = torch.stack([parameter.norm() for parameter in model.parameters()]).isfinite().all()
    model.zero_grad()
    if logits.shape != (len(images), 5):
        return f"logits {tuple(logits.shape)}"
    if without:
        return f"no gradient for {without}"
    return "" if loss.isfinite() and finite else f"loss {loss.item()}, weights finite: {finite.item()}"
