"""VGG for 32x32 images: the convolutions of Simonyan & Zisserman 2015, and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .initialize import kaiming

# Convolutions of each of the five stages; their widths are 64, 128, 256, 512, 512.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
    """Input (N, 3, 32, 32), output (N, num_classes): VGG's stages with a norm behind each convolution.

    After five halvings a 32x32 image is one pixel of 512 channels, which one linear layer reads: the three
    that ImageNet's VGG has would be 7x7x512 wide. A larger image is averaged over its last pixels.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convolutions, width in zip(STAGES[depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))
