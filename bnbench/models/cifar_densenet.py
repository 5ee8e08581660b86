"""DenseNet and DenseNet-BC (L, k) for small images: Huang et al. 2017, section 3 and table 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbench import catalog

from .initialize import kaiming


class DenseLayer(nn.Module):
    """norm, ReLU, 3x3 convolution to `growth` channels; their input goes along, in front of them.

    With `bottleneck`, norm, ReLU and a 1x1 convolution to 4 growth channels come first.
    """

    def __init__(self, in_channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        width = 4 * growth if bottleneck else in_channels
        if bottleneck:
            self.norm1 = nn.BatchNorm2d(in_channels)
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x))) if self.bottleneck else x
        new = self.conv2(F.relu(self.norm2(new)))
        return torch.cat((x, new), 1)


class Transition(nn.Module):
    """norm, ReLU, 1x1 convolution, 2x2 average pooling."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class CifarDenseNet(nn.Module):
    """Input (N, 3, H, W) of side 4 or more, output (N, num_classes); three dense blocks.

    A block has (depth - 4) / 3 layers, with `bc` (bottlenecks, and transitions that halve the channels)
    (depth - 4) / 6. The stem has 16 channels, with `bc` 2 growth. Initialised by fan_in, as torchvision's
    DenseNet; the authors' code takes fan_out. Raises ValueError for a depth that leaves a remainder,
    naming the nearest ones, and for growth below 1.
    """

    def __init__(self, bc: bool, num_classes: int, depth: int, growth: int = 12) -> None:
        super().__init__()
        catalog.check_depth("cifar_densenet_bc" if bc else "cifar_densenet", depth)
        if growth < 1:
            raise ValueError(f"model.growth={growth} must be at least 1: the channels that each layer adds")
        layers = (depth - 4) // (6 if bc else 3)
        channels = 2 * growth if bc else 16
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for block in range(3):
            for _ in range(layers):
                blocks.append(DenseLayer(channels, growth, bc))
                channels += growth
            if block < 2:
                kept = channels // 2 if bc else channels
                blocks.append(Transition(channels, kept))
                channels = kept
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
