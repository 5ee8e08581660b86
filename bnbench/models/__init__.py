"""The networks, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bnbench import catalog

from .cifar_resnet import CifarResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    f"resnet{depth}": partial(CifarResNet, depth) for depth in catalog.CIFAR_RESNET_DEPTHS
}


def build_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The network with BatchNorm2d in its places; ValueError for an unknown name, naming the known."""
    catalog.check_known("model", name, MODELS)
    return MODELS[name](num_classes, **options)
