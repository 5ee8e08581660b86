"""torchvision's families, with `weights=None` and their own initialisation; VGG with its norms."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from .preact import PreactBasicBlock, PreactBottleneck, PreactResNet

# Blocks of each stage; torchvision keeps these numbers inside its builders.
STAGES = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


def resnet(
    depth: int, num_classes: int, preact: bool = False, groups: int = 1, width_per_group: int = 64
) -> ResNet:
    """ResNet (He et al. 2016, the stride in the 3x3 convolution), ResNeXt (Xie et al. 2017: groups), Wide
    ResNet (Zagoruyko & Komodakis 2016: width_per_group); `preact` as in `PreactResNet`.

    Input (N, 3, H, W), output (N, num_classes).
    """
    shape = {"num_classes": num_classes, "groups": groups, "width_per_group": width_per_group}
    if preact:
        return PreactResNet(PreactBasicBlock if depth < 50 else PreactBottleneck, STAGES[depth], **shape)
    return ResNet(BasicBlock if depth < 50 else Bottleneck, STAGES[depth], **shape)


def densenet(depth: int, num_classes: int) -> nn.Module:
    """DenseNet-BC (Huang et al. 2017): input (N, 3, H, W) of side 29 or more, output (N, num_classes)."""
    return models.get_model(f"densenet{depth}", weights=None, num_classes=num_classes)


def vgg(depth: int, num_classes: int) -> nn.Module:
    """VGG (Simonyan & Zisserman 2015) with a norm behind each convolution (torchvision's `vgg*_bn`).

    Input (N, 3, H, W) of side 32 or more, output (N, num_classes).
    """
    return models.get_model(f"vgg{depth}_bn", weights=None, num_classes=num_classes)


def inception_v3(num_classes: int, aux_weight: float = 0.4) -> nn.Module:
    """Inception v3 (Szegedy et al. 2016): input (N, 3, H, W), there 299x299, with `aux_weight=0` from 75x75.

    Output in training InceptionOutputs(logits, aux_logits), the second's loss to be weighted by
    `model.aux_weight` (0.4 in the authors' code); in eval mode, or without the head (`aux_weight=0`), the
    logits alone. Initialised as torchvision's: normal, cut at +-2, with its deviation for each layer (0.1,
    smaller in the head); 0.6 s in the supported versions, where it takes no scipy.
    """
    return _with_heads("inception_v3", num_classes, aux_weight)


def googlenet(num_classes: int, aux_weight: float = 0.3) -> nn.Module:
    """GoogLeNet (Szegedy et al. 2015) with norms: input (N, 3, H, W) of side 15 or more.

    Output in training GoogLeNetOutputs(logits, aux_logits2, aux_logits1), each of the last two with weight
    `model.aux_weight` (section 5 there: 0.3); else as `inception_v3`. Initialised as torchvision's: normal
    of deviation 0.01. Its "5x5" convolutions are 3x3 (pytorch/vision #906).
    """
    return _with_heads("googlenet", num_classes, aux_weight)


def _with_heads(name: str, num_classes: int, aux_weight: float) -> nn.Module:
    if not 0 <= aux_weight < float("inf"):
        raise ValueError(f"model.aux_weight={aux_weight} must be finite and at least 0: the weight of a loss")
    options: dict[str, Any] = {"aux_logits": aux_weight > 0, "transform_input": False, "init_weights": True}
    model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    model.aux_weight = aux_weight
    return model
