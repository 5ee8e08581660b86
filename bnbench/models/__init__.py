"""The networks, by name. Each is built with BatchNorm2d in its places, and traceable by torch.fx."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from bnbench import catalog, dotted
from bnbench.norms import swap_norms

from . import imagenet
from .cifar_densenet import CifarDenseNet
from .cifar_inception import CifarInception
from .cifar_resnet import CifarResNet
from .cifar_vgg import CifarVGG
from .outputs import logits_of
from .weights import load_weights

__all__ = ["MODELS", "build_model", "load_weights", "logits_of"]

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in catalog.CIFAR_RESNET_DEPTHS},
    "cifar_densenet": partial(CifarDenseNet, False, depth=40),
    "cifar_densenet_bc": partial(CifarDenseNet, True, depth=100),
    **{f"cifar_vgg{depth}": partial(CifarVGG, depth) for depth in catalog.VGG_DEPTHS},
    "cifar_inception": CifarInception,
    **{f"resnet{depth}": partial(imagenet.resnet, depth) for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": partial(imagenet.resnet, 50, groups=32, width_per_group=4),
    "resnext101_32x8d": partial(imagenet.resnet, 101, groups=32, width_per_group=8),
    "resnext101_64x4d": partial(imagenet.resnet, 101, groups=64, width_per_group=4),
    **{f"wide_resnet{depth}_2": partial(imagenet.resnet, depth, width_per_group=128) for depth in (50, 101)},
    **{f"densenet{depth}": partial(imagenet.densenet, depth) for depth in (121, 161, 169, 201)},
    "inception_v3": imagenet.inception_v3,
    "googlenet": imagenet.googlenet,
    **{f"vgg{depth}": partial(imagenet.vgg, depth) for depth in catalog.VGG_DEPTHS},
}


def build_model(
    name: str, num_classes: int, norm: str | Mapping[str, Any] | None = None, **options: Any
) -> nn.Module:
    """The network called `name`: (N, 3, H, W) to logits (N, num_classes); see `logits_of` for auxiliary heads.

    `norm` is None (BatchNorm2d as built), a kind of `norms.NORMS`, or a mapping {"name": kind, **options}:
    then `norms.swap_norms` puts it in their places, so that at one seed the convolutions are equal whatever
    the norm. `options` are those that `catalog.MODELS[name].uses` lists; None stands for the default.
    `weights` is a file for `load_weights`, which reads it before the swap. `model.aux_weight` is the
    weight of each auxiliary loss (missing: 0).

    A name with a dot in it ("my_package.nets.MyNet") is imported and called as builder(num_classes, **options).

    Raises ValueError for an unknown name, option or norm, naming the known ones, and for weights that do not fit.
    """
    weights = options.pop("weights", None)
    if dotted.is_dotted(name):
        model = _custom(name, num_classes, options)
    else:
        catalog.check_known("model", name, MODELS)
        given = {key: value for key, value in options.items() if value is not None}
        known = catalog.MODELS[name].uses
        for option in given:
            if option not in known:
                raise ValueError(f"unknown option {option!r} of model {name!r}; known: {', '.join(known)}")
        model = MODELS[name](num_classes, **given)
    if weights is not None:
        load_weights(model, str(weights), num_classes)
    if norm is not None:
        settings = {"name": norm} if isinstance(norm, str) else dict(norm)
        if "name" not in settings:
            raise ValueError(f"norm={settings} names no kind: give {{'name': 'gn', ...}}")
        swap_norms(model, settings.pop("name"), **settings)
    return model


def _custom(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    builder = dotted.load("model.name", name)
    try:
        inspect.signature(builder).bind(num_classes, **options)
    except TypeError as error:
        raise ValueError(f"model.name={name} is called with (num_classes, **options): {error}") from None
    model = builder(num_classes, **options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model.name={name} must build an nn.Module; it gave a {type(model).__name__}")
    return model
