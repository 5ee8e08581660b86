"""The initialisation that the CIFAR forms share."""

from __future__ import annotations

from torch import nn


def kaiming(model: nn.Module) -> None:
    """He et al. 2015, for a ReLU network: weights normal with variance 2 / fan_in, linear biases zero.

    In the order of `model.modules()`, which draws nothing for a norm: two orders of one network's layers
    (plain and pre-activation) start with equal convolutions at one seed.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
