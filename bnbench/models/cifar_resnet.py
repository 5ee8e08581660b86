"""ResNets for small images: He et al. 2016, section 4.2, and their pre-activation form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialize import kaiming


class Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: subsample, pad channels with zeros)."""

    def __init__(self, in_channels: int, channels: int, stride: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1 or self.extra_channels:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.residual:
            out = out + self.shortcut(x)
        return F.relu(out)


class PreactBlock(Block):
    """norm, ReLU, convolution, twice; nothing behind the sum (He et al. 2016b, figure 4e).

    `first` in its stage: the first norm and ReLU come before the split, so that the shortcut too takes the
    activated input. Elsewhere the shortcut is the identity (see `preact.py`).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, first: bool) -> None:
        super().__init__(in_channels, channels, stride)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        shortcut = self.shortcut(out if self.first else x)
        out = self.conv2(F.relu(self.norm2(self.conv1(out))))
        return out + shortcut


class CifarResNet(nn.Module):
    """Input (N, 3, H, W), output (N, num_classes); three stages of (depth - 2) / 6 blocks.

    Built with BatchNorm2d everywhere; `norms.swap_norms` puts another norm in its places, so that at one
    seed the convolutions start equal whatever the norm. `stem_stride=2` quarters the cost. `preact=True`
    is the pre-activation order of He et al. 2016b: it takes the norm behind the stem's convolution away and
    puts one, with its ReLU, before the pooling. `residual=False` leaves the shortcuts out: the plain networks
    of the same paper. `dropout` is the probability of dropping a feature before the classifier.
    Raises ValueError for a depth that is not 6 n + 2, and for a plain network in the pre-activation order.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        width: int = 16,
        stem_stride: int = 1,
        preact: bool = False,
        residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers: depth {depth} is not among 8, 14, 20, ...")
        for key, value in {"width": width, "stem_stride": stem_stride}.items():
            if value < 1:
                raise ValueError(f"model.{key}={value} must be at least 1")
        if preact and not residual:
            raise ValueError(
                "model.residual=false with model.preact=true: the pre-activation order is one of residual blocks; "
                "set model.preact=false"
            )
        self.preact = preact
        self.conv1 = nn.Conv2d(3, width, 3, stem_stride, padding=1, bias=False)
        if not preact:
            self.norm1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                if preact:
                    stages.append(PreactBlock(channels, out_channels, stride, first=block == 0))
                else:
                    stages.append(Block(channels, out_channels, stride, residual))
                channels = out_channels
        self.blocks = nn.Sequential(*stages)
        if preact:
            self.final_norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.preact:
            x = F.relu(self.norm1(x))
        x = self.blocks(x)
        if self.preact:
            x = F.relu(self.final_norm(x))
        return self.fc(self.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))
