"""How much a GPU check does: all of it on a GPU, or the same paths in small on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bnbench.norms import NORMS

# (channels, pixels a side) of the norms of torchvision's ResNet-50 at 224 px, each pair once.
RESNET50 = (
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14), (1024, 14), (512, 14),
    (512, 7), (2048, 7),
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """`seconds`: after them no part begins, and a part that can leaves its rest out and says so."""

    device: str
    seconds: float
    kinds: tuple[str, ...] = tuple(NORMS)
    # Agreement: one layer's input.
    shape: tuple[int, int, int, int] = (16, 64, 28, 28)
    compiler: str = "inductor"
    # Layers and network: ResNet-50.
    images: int = 256
    pixels: int = 224
    shapes: tuple[tuple[int, int], ...] = RESNET50
    copy_bytes: int = 2**30
    rounds: int = 2  # interleaved, of layers
    calls: int = 3  # of a layer in a round
    blocks: int = 4  # interleaved, of steps through Lightning and bare
    steps: int = 10  # timed, of such a block
    network_kinds: tuple[str, ...] = tuple(NORMS)
    network_blocks: int = 3
    network_steps: int = 3
    compiled: tuple[str, ...] = ("bn", "gn", "none", "ghost")
    through_lightning: tuple[str, ...] = ("bn",)
    # Grid: ResNet-20 on images of CIFAR's size.
    grid_model: str = "resnet20"
    grid_batch: int = 128
    grid_nbs: tuple[int, ...] = (2, 4, 8, 16, 32, 128)
    grid_norms: tuple[str, ...] = ("bn", "brn", "evonorm_b0", "gn")
    grid_steps: int = 150
    grid_images: int = 20_480
    grid_tests: int = 2_000
    worlds: int = 4  # side by side on the one device

    @property
    def precision(self) -> str:
        """bf16 as one trains on a GPU; on most CPUs it is emulated, and slow."""
        return "bf16" if self.on_gpu else "fp32"

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def full(seconds: float) -> Sizes:
    """On a GPU. ValueError without one."""
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here; --dry runs the same in small on a CPU")
    return Sizes("cuda", seconds)


def dry(seconds: float) -> Sizes:
    """Small enough for a CPU: every path, no figure that means anything."""
    return Sizes(
        "cpu", seconds, shape=(4, 8, 6, 6), compiler="aot_eager", images=4, pixels=64, shapes=((8, 8), (16, 4)),
        copy_bytes=2**20, rounds=2, calls=1, blocks=2, steps=2, network_kinds=("bn", "vbn", "none"),
        network_blocks=2, network_steps=1, compiled=("bn",), through_lightning=("bn",), grid_model="resnet8",
        grid_batch=16, grid_nbs=(2, 16), grid_norms=("bn", "gn"), grid_steps=4, grid_images=256, grid_tests=32,
        worlds=2,
    )  # fmt: skip
