"""The pre-activation order (He et al. 2016b, "Identity Mappings in Deep Residual Networks") of torchvision's ResNets.

A residual unit is x + F(x) with F = norm, ReLU, convolution, ...: nothing stands on the way of x. So

- the norm and ReLU behind the stem's convolution go away, and one pair comes before the pooling;
- in the first unit of each stage, norm and ReLU come before the split, and its shortcut takes what they
  give. Of the network's first unit the paper says so ("the first activation right after conv1 and before
  splitting into two paths"); for the units that widen, the authors' code does so (resnet-pre-act.lua in
  KaimingHe/resnet-1k-layers): a projection of what is not normalized would put its scale into the sum;
- that shortcut's projection is a bare 1x1 convolution: a norm behind it would be one in the trunk.

ImageNet's stem keeps its max pooling, between convolution and first unit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class PreactBasicBlock(BasicBlock):
    """norm, ReLU, 3x3 convolution, twice. `first` in its stage: the shortcut takes the activated input."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        projection = None if downsample is None else downsample[0]
        super().__init__(inplanes, planes, stride, projection, *args, **kwargs)
        self.bn1 = nn.BatchNorm2d(inplanes)
        # torchvision's works in place: moved before its norm it would change x, which the shortcut takes.
        self.relu = nn.ReLU()
        self.first = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        identity = out if self.first else x
        if self.downsample is not None:
            identity = self.downsample(identity)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        return out + identity


class PreactBottleneck(Bottleneck):
    """norm, ReLU, convolution of 1x1, 3x3 (with the stride) and 1x1. `first`: as in `PreactBasicBlock`."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        projection = None if downsample is None else downsample[0]
        super().__init__(inplanes, planes, stride, projection, *args, **kwargs)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.bn3 = nn.BatchNorm2d(self.bn2.num_features)
        self.relu = nn.ReLU()
        self.first = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        identity = out if self.first else x
        if self.downsample is not None:
            identity = self.downsample(identity)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + identity


class PreactResNet(ResNet):
    """Input (N, 3, H, W), output (N, num_classes): torchvision's ResNet with its units in the other order.

    Its convolutions and classifier start as torchvision's do at the same seed.
    """

    def __init__(
        self, block: type[PreactBasicBlock | PreactBottleneck], layers: list[int], **kwargs: Any
    ) -> None:
        super().__init__(block, layers, **kwargs)
        del self.bn1
        self.final_norm = nn.BatchNorm2d(self.fc.in_features)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            stage[0].first = True

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.avgpool(self.relu(self.final_norm(x)))
        return self.fc(torch.flatten(x, 1))
