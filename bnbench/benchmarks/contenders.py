"""Who takes part in `bnbench bench norms`: every kind of NORMS, what it is compared with, and its target."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnbench.norms import NORMS, VirtualBatchNorm2d, WSConv2d, build_norm
from bnbench.norms.channel import largest_groups
from bnbench.norms.weight import standardize

from . import straightforward

GHOSTS = (2, 4, 8, 16, 32)
LOOP_GHOSTS = 8
BN = "torch BatchNorm2d"
# Time to the reference's, and storages saved for backward in inputs; at TARGET_SHAPE on CPU, fp32, contiguous.
TARGET_SHAPE = (64, 64, 32, 32)
RATIO_TARGETS = {
    "bn": 1.03, "ghost": 1.05, "gn": 1.02, "brn": 1.5, "frn": 2.0, "evonorm_s0": 3.0, "evonorm_b0": 4.0,
}  # fmt: skip
SAVED_TARGETS = {"frn": 2.5, "evonorm_s0": 2.5, "evonorm_b0": 2.5}
COLLECTIVE_TARGET = (1, 1)  # of BN over ranks: forward and backward


@dataclass(frozen=True)
class Contender:
    """A layer to measure. `reference` names the contender that its time is divided by."""

    name: str
    kind: str  # of NORMS, or "reference"
    maker: str  # bnbench, torch, torchvision, timm, or autograd: written down plainly
    build: Callable[[], nn.Module] = field(repr=False)
    reference: str = BN
    extra_images: int = 0  # put before the batch: Virtual BN's reference

    @property
    def ratio_target(self) -> float | None:
        return RATIO_TARGETS.get(self.kind) if self.maker == "bnbench" else None

    @property
    def saved_target(self) -> float | None:
        return SAVED_TARGETS.get(self.kind) if self.maker == "bnbench" else None


def contenders(
    shape: Sequence[int], kinds: Sequence[str], process_group: Any = None, peers: bool = True
) -> list[Contender]:
    """Those of `kinds`, references first; with a `process_group`, kinds that can span ranks span it.

    Without `peers` only bnbench's own and BN: nothing else needs to be imported.

    A group count that does not divide the channels becomes the largest divisor below it, as in a swap.
    """
    images, channels = shape[:2]
    torchs = _references(channels)
    found: list[Contender] = []
    for kind in kinds:
        if kind == "ghost":
            found += _ghosts(shape)
            continue
        options: dict[str, Any] = {}
        builder = NORMS.get(kind)
        parameters = inspect.signature(builder).parameters if builder is not None else {}
        if "num_groups" in parameters:
            options["num_groups"] = largest_groups(channels, 32)
        if "process_group" in parameters:
            options["process_group"] = process_group
        build = partial(build_norm, kind, channels, **options)
        reference = _REFERENCE_OF.get(kind, BN)
        reference = reference if reference in torchs else BN
        if kind in ("ws_gn", "ws_bn"):
            found.append(
                Contender(f"{kind} + 3x3 filters", kind, "bnbench", partial(_WithFilters, build), reference)
            )
        elif kind == "vbn":
            build = partial(_virtual, channels, images)
            found.append(Contender(f"vbn, +{images} images", kind, "bnbench", build, reference, images))
        elif kind == "brn":
            # The bounds open at once: at (1, 0), where they begin, brn is bn.
            build = partial(build, warmup=0, r_end=0, d_end=0)
            found.append(Contender(kind, kind, "bnbench", build, reference))
        else:
            found.append(Contender(kind, kind, "bnbench", build, reference))
        found += _others(kind, channels) if peers else []
    if not peers:
        return [torchs[BN], *(replace(each, reference=BN) for each in found if each.maker == "bnbench")]
    used = {BN, *(each.reference for each in found)}
    return [each for name, each in torchs.items() if name in used] + found


_REFERENCE_OF = {
    "gn": "torch GroupNorm",
    "ws_gn": "torch GroupNorm",
    "ln": "torch GroupNorm(1)",
    "ln2d": "torch LayerNorm",
    "in": "torch InstanceNorm2d",
    "frozen": "torchvision FrozenBN",
}


def _references(channels: int) -> dict[str, Contender]:
    builders: dict[str, Callable[[], nn.Module]] = {
        BN: partial(nn.BatchNorm2d, channels),
        "torch GroupNorm": partial(nn.GroupNorm, largest_groups(channels, 32), channels),
        "torch GroupNorm(1)": partial(nn.GroupNorm, 1, channels),
        "torch LayerNorm": partial(straightforward.PixelLayerNorm, channels),
        "torch InstanceNorm2d": partial(nn.InstanceNorm2d, channels, affine=True),
    }
    if importlib.util.find_spec("torchvision"):
        from torchvision.ops import FrozenBatchNorm2d

        builders["torchvision FrozenBN"] = partial(FrozenBatchNorm2d, channels)
    return {
        name: Contender(name, "reference", name.split()[0], build) for name, build in builders.items()
    }  # fmt: skip


def _ghosts(shape: Sequence[int]) -> list[Contender]:
    """Ghost BN at every count that the batch allows."""
    images, channels, *pixels = shape
    counts = [k for k in GHOSTS if images % k == 0 and images // k * pixels[0] * pixels[1] > 1]
    found = [
        Contender(f"ghost, k={k}", "ghost", "bnbench", partial(build_norm, "ghost", channels, ghosts=k))
        for k in counts
    ]
    if LOOP_GHOSTS in counts:
        build = partial(straightforward.ChunkLoopGhost, channels, LOOP_GHOSTS)
        found.append(Contender(f"ghost, k={LOOP_GHOSTS}, chunk loop", "ghost", "autograd", build))
    return found


def _others(kind: str, channels: int) -> list[Contender]:
    """The same norm by other hands: written down plainly, and timm's."""
    groups = largest_groups(channels, 32)
    plain: dict[str, Callable[[], nn.Module]] = {
        "brn": partial(straightforward.Renorm, channels),
        "frn": partial(straightforward.FilterResponse, channels),
        "evonorm_s0": partial(straightforward.EvoNormS0, channels, groups),
        "evonorm_b0": partial(straightforward.EvoNormB0, channels),
    }
    found = []
    if kind in plain:
        found.append(Contender(f"{kind}, autograd", kind, "autograd", plain[kind]))
    if kind == "frn":
        build = partial(straightforward.BatchNormReLU, channels)
        found.insert(0, Contender("torch BatchNorm2d + ReLU", kind, "torch", build))
    if importlib.util.find_spec("timm"):
        from timm import layers

        timms: dict[str, Callable[[], nn.Module]] = {
            "frn": partial(layers.FilterResponseNormTlu2d, channels),
            "evonorm_s0": partial(layers.EvoNorm2dS0, channels, groups=groups),
            "evonorm_b0": partial(layers.EvoNorm2dB0, channels),
            "ln2d": partial(layers.LayerNorm2d, channels),
        }
        if kind in timms:
            found.append(Contender(f"{kind}, timm", kind, "timm", timms[kind], _REFERENCE_OF.get(kind, BN)))
    return found


class _WithFilters(nn.Module):
    """A norm, and beside it the standardization of the 3x3 filters in front of it: what `ws_*` adds."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm = build()
        channels = self.norm.num_features
        assert isinstance(channels, int)
        self.conv = WSConv2d(channels, channels, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(x), standardize(self.conv.weight)


def _virtual(channels: int, reference: int) -> nn.Module:
    layer = build_norm("vbn", channels)
    assert isinstance(layer, VirtualBatchNorm2d)
    layer.num_reference = reference
    return layer


def batch(
    shape: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    seed: int,
    device: str = "cpu",
) -> Tensor:
    """Normal values of mean 1: far from the special case of centred data, near to what a conv gives."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(*shape, generator=generator, device=device) + 1
    return x.to(dtype).contiguous(memory_format=memory_format)
