"""What every layer here shares: its place in a model, its checks, and how it keeps a memory format."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import fused


class Norm(nn.Module):
    """Base of bnbench's layers. `swap_norms` sets `path`, so that an error says where in the model it is.

    A kind that includes the activation (FRN, EvoNorm) has `includes_activation`, and instances `act`.
    """

    num_features: int
    path: str = ""
    includes_activation: ClassVar[bool] = False
    kernel: str = "torch"  # what the last forward took, where there is a choice: torch or triton

    @property
    def where(self) -> str:
        return f"{type(self).__name__} at {self.path}" if self.path else type(self).__name__

    def by_triton(self, x: Tensor) -> bool:
        """Whether `fused` takes `x`, which `kernel` then says."""
        kernel = "triton" if fused.applies(x) else "torch"
        if kernel != self.kernel:
            self.kernel = kernel
        return kernel == "triton"

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless `x` is (N, C, H, W) with this layer's channels."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{self.where}: input {tuple(x.shape)} is not (N, {self.num_features}, H, W): build the layer "
                "with num_features = the channels of what it follows"
            )

    def check_values(self, count: float, among: str) -> None:
        """Raise ValueError if `count` values share statistics and there is no more than one of them."""
        if count == 1:
            raise ValueError(
                f"{self.where}: one value per channel {among} has no variance: "
                "use more images, larger inputs, or a norm with other statistics"
            )


class _Dense(torch.autograd.Function):
    """x with the strides of a new tensor, and its gradient likewise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy.clone(memory_format=torch.contiguous_format)


def one_image_densely(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A forward through torch's CPU kernel of batch normalization, which differentiates one image wrongly where its
    strides and its gradient's are of two formats (torch 2.11 to 2.15): an image passes for contiguous in both."""

    @functools.wraps(forward)
    def densely(self: Any, input: Tensor) -> Tensor:
        if input.is_cuda or input.dim() != 4 or input.shape[0] > getattr(self, "ghosts", 1):
            return forward(self, input)
        return like_input(_Dense.apply(forward(self, _Dense.apply(input))), input)

    return densely


def like_input(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory format of `x`: what goes in as channels_last comes out as channels_last."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)


def _torchvision_norms() -> tuple[type[nn.Module], ...]:
    if importlib.util.find_spec("torchvision") is None:
        return ()
    from torchvision.ops import FrozenBatchNorm2d

    return (FrozenBatchNorm2d,)


TORCHVISION_NORMS = _torchvision_norms()
# By type, never by name: what the optimizer's parameter groups and a swap take for a norm.
NORM_TYPES: tuple[type[nn.Module], ...] = (
    Norm,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    *TORCHVISION_NORMS,
)
