"""The catalogued networks are the published ones: parameters, shapes, sizes, traces. On meta tensors: no arithmetic."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from bnbench import catalog
from bnbench.models import MODELS, build_model, logits_of

CIFAR = [name for name, info in catalog.MODELS.items() if info.family.startswith("cifar_")]
TORCHVISION = [name for name in catalog.MODELS if name not in CIFAR]
RESIDUAL = [name for name, info in catalog.MODELS.items() if "preact" in info.uses]
AUXILIARY = [name for name, info in catalog.MODELS.items() if "aux_weight" in info.uses]
# One of each builder; the others differ in their numbers of layers, channels and groups.
FIRST = (
    *(
        "resnet8",
        "cifar_densenet",
        "cifar_densenet_bc",
        "cifar_vgg11",
        "cifar_inception",
        "resnet18",
        "resnet50",
    ),
    *("resnext50_32x4d", "densenet121", "inception_v3", "googlenet", "vgg11"),
)


def forms() -> list[Any]:
    """Every model, and every order of layers that an option gives it."""
    every: list[tuple[str, dict[str, Any]]] = [
        *((name, {}) for name in MODELS),
        *((name, {"preact": True}) for name in RESIDUAL),
        *((name, {"aux_weight": 0.0}) for name in AUXILIARY),
    ]
    return [
        pytest.param(
            name, options, id="-".join((name, *options)), marks=() if name in FIRST else pytest.mark.slow
        )
        for name, options in every
    ]


all_forms = pytest.mark.parametrize(("name", "options"), forms())


def meta(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes, **options)


@functools.cache
def _kept(name: str, *options: tuple[str, Any]) -> nn.Module:
    return meta(name, 7, **dict(options))


def kept(name: str, options: dict[str, Any]) -> nn.Module:
    """One instance for the tests that look at it only; a deep one takes half a second to build."""
    return _kept(name, *options.items())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def forward(model: nn.Module, side: int, images: int = 2, train: bool = True) -> list[Tensor]:
    return logits_of(model.train(train)(torch.empty(images, 3, side, side, device="meta")))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_models_have_the_parameters_that_it_publishes(name):
    original = f"{name}_bn" if name.startswith("vgg") else name
    published = torchvision.models.get_model_weights(original).DEFAULT.meta["num_params"]
    options = {"aux_weight": 0.0} if name == "googlenet" else {}  # its published count leaves the heads out
    assert parameters(meta(name, 1000, **options)) == published


# In millions where the paper rounds: He et al. 2016, table 6; Huang et al. 2017, table 2. Zhang et al. 2017,
# table 1, exactly: their batch norm had no scale, ours has one for each of 1,712 channels.
@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("resnet20", {}, 0.27),
        ("resnet32", {}, 0.46),
        ("resnet44", {}, 0.66),
        ("resnet56", {}, 0.85),
        ("resnet110", {}, 1.7),
        ("cifar_densenet", {}, 1.0),
        ("cifar_densenet", {"depth": 100, "growth": 12}, 7.0),
        ("cifar_densenet", {"depth": 100, "growth": 24}, 27.2),
        ("cifar_densenet_bc", {}, 0.8),
        ("cifar_densenet_bc", {"depth": 250, "growth": 24}, 15.3),
        ("cifar_densenet_bc", {"depth": 190, "growth": 40}, 25.6),
        ("cifar_inception", {}, (1_649_402 + 1_712) / 1e6),
    ],
)
def test_the_cifar_forms_have_the_parameters_of_their_papers(name, options, want):
    # Half of the last digit, and what papers leave out of such a count or round up: 2% at most.
    found = parameters(meta(name, **options)) / 1e6
    digits = 6 if name == "cifar_inception" else len(str(want).partition(".")[2])
    assert round(found, digits) == want or (
        name != "cifar_inception" and found == pytest.approx(want, rel=0.02)
    )


@pytest.mark.parametrize("depth", catalog.VGG_DEPTHS)
def test_a_cifar_vgg_is_torchvisions_but_for_its_classifier_and_biases(depth):
    """A bias before a norm does nothing: its mean takes it away."""
    ours, theirs = meta(f"cifar_vgg{depth}").features, meta(f"vgg{depth}").features
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
    biases = sum(layer.bias.numel() for layer in theirs if isinstance(layer, nn.Conv2d))
    assert parameters(ours) == parameters(theirs) - biases


@all_forms
def test_logits_in_training_and_evaluation_and_a_trace_in_both(name, options):
    model = kept(name, options)
    side = catalog.MODELS[name].sides(options.get("aux_weight"))[0]
    for train in (True, False):
        heads = forward(model, side, train=train)
        assert [tuple(head.shape) for head in heads] == [(2, 7)] * len(heads)
        assert len(heads) == (1 + _heads(name, options) if train else 1)
        traced = fx.symbolic_trace(model)
        found = logits_of(traced(torch.empty(2, 3, side, side, device="meta")))
        assert [head.shape for head in found] == [head.shape for head in heads]
    weight = getattr(model, "aux_weight", 0.0)
    assert weight == {"inception_v3": 0.4, "googlenet": 0.3}.get(name, 0.0) * bool(_heads(name, options))


def _heads(name: str, options: dict[str, Any]) -> int:
    return 0 if options.get("aux_weight") == 0 else {"inception_v3": 1, "googlenet": 2}.get(name, 0)


@all_forms
def test_the_sides_are_the_smallest_that_train(name, options):
    """Two images from `min_side`, one from `one_image_side`; evaluation asks for no more."""
    model = kept(name, options)
    for images, smallest in zip((2, 1), catalog.MODELS[name].sides(options.get("aux_weight")), strict=True):
        forward(model, smallest, images)
        if smallest > 1:
            with pytest.raises((RuntimeError, ValueError)):
                forward(model, smallest - 1, images)


def test_the_models_of_a_builder_have_one_size_rule():
    """What the slow half of the test above proves of every model."""
    for family in {info.family for info in catalog.MODELS.values()} - {"inception"}:
        rules = {info.sides() for info in catalog.MODELS.values() if info.family == family}
        assert len(rules) == 1, family


@all_forms
def test_every_norm_is_a_layer_of_its_own_with_a_relu_behind_where_the_architecture_has_one(name, options):
    """Behind the sum of a residual unit, not behind its last norm, where the order is not pre-activation."""
    model = kept(name, options).train()
    traced = fx.symbolic_trace(model)
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    nodes = [node for node in traced.graph.nodes if node.op == "call_module" and node.target in norms]
    assert {node.target for node in nodes} == norms
    assert len(nodes) == len(norms)
    bare = [node for node in nodes if not all(_is_relu(user, traced) for user in node.users)]
    units = [
        module for module in model.modules() if type(module).__name__ in ("Block", "BasicBlock", "Bottleneck")
    ]
    projections = [unit for unit in units if getattr(unit, "downsample", None) is not None]
    assert len(bare) == len(units) + len(projections)
    assert len(bare) == {"resnet50": 20}.get(name, len(bare)) or options
    assert all(len(node.users) == 1 for node in nodes)


def _is_relu(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (nn.functional.relu, torch.relu)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_a_residual_net_of_torchvisions_starts_in_its_bits(name):
    torch.manual_seed(3)
    ours = build_model(name, 10).state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("kind", ["gn", "in", "frozen", {"name": "gn", "num_groups": 4}])
def test_the_norm_does_not_touch_how_the_rest_starts(kind):
    models = []
    for norm in (None, kind):
        torch.manual_seed(5)
        models.append(build_model("cifar_densenet", 10, norm=norm, depth=10))
    plain, swapped = ({k: v for k, v in m.state_dict().items() if "conv" in k or "fc" in k} for m in models)
    assert plain.keys() == swapped.keys()
    assert all(torch.equal(tensor, swapped[key]) for key, tensor in plain.items())
    kinds = [type(module).__name__ for module in models[1].modules()]
    assert "BatchNorm2d" not in kinds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_model("resnet9", 10), "unknown model 'resnet9'; known: resnet8, resnet14, "),
        (
            lambda: build_model("vgg11", 10, preact=True),
            "unknown option 'preact' of model 'vgg11'; known: weights",
        ),
        (lambda: build_model("resnet8", 10, norm="bnn"), "unknown norm 'bnn'; known: bn, "),
        (lambda: build_model("resnet8", 10, norm={"num_groups": 4}), "names no kind"),
        (lambda: build_model("resnet8", 10, width=0), "model.width=0 must be at least 1"),
        (lambda: build_model("cifar_densenet", 10, depth=41), r"model.depth=41: .* 3 n \+ 4 .* 40 or 43"),
        (lambda: build_model("cifar_densenet_bc", 10, depth=12), r"6 n \+ 4 layers; nearest are 10 or 16"),
        (lambda: build_model("cifar_densenet_bc", 10, depth=-2), r"nearest are 10 or 16"),
        (lambda: build_model("cifar_densenet", 10, growth=0), "model.growth=0 must be at least 1"),
        (lambda: build_model("googlenet", 10, aux_weight=-1.0), "model.aux_weight=-1.0 must be finite"),
        (lambda: logits_of({"out": torch.ones(1)}), "returned dict"),
        (lambda: logits_of([None, torch.ones(1)]), "returned list"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_building_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in AUXILIARY:
            meta(name)


def test_what_a_model_returns_is_its_logits_then_the_heads():
    main, one, two = torch.ones(1), torch.zeros(1), torch.full((1,), 2.0)
    outputs = torchvision.models.GoogLeNetOutputs(main, None, one)
    assert logits_of(main) == [main]
    assert [float(x) for x in logits_of(outputs)] == [1, 0]
    assert [float(x) for x in logits_of((main, one, two))] == [1, 0, 2]
