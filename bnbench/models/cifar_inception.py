"""The small Inception of Zhang et al. 2017, "Understanding deep learning requires rethinking generalization"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialize import kaiming


class ConvModule(nn.Module):
    """Convolution, norm, ReLU; padded so that stride 1 keeps the size."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class InceptionModule(nn.Module):
    """1x1 and 3x3 convolutions side by side."""

    def __init__(self, in_channels: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.conv1x1 = ConvModule(in_channels, narrow, 1)
        self.conv3x3 = ConvModule(in_channels, wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv1x1(x), self.conv3x3(x)), 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 beside 3x3 max pooling of stride 2."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv3x3 = ConvModule(in_channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv3x3(x), F.max_pool2d(x, 3, 2, padding=1)), 1)


# Figure 3 there, top to bottom: (1x1, 3x3) channels of an Inception module, or of a downsampling.
LAYERS: tuple[tuple[int, int] | int, ...] = (
    (32, 32), (32, 48), 80, (112, 48), (96, 64), (80, 80), (48, 96), 96, (176, 160), (176, 160)
)  # fmt: skip


class CifarInception(nn.Module):
    """Input (N, 3, H, W), there 28x28; output (N, num_classes). 20 convolutions, each with norm and ReLU."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = ConvModule(3, 96, 3)
        layers: list[nn.Module] = []
        channels = 96
        for widths in LAYERS:
            if isinstance(widths, int):
                layers.append(Downsample(channels, widths))
                channels += widths
            else:
                layers.append(InceptionModule(channels, *widths))
                channels = sum(widths)
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
