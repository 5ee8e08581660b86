"""Weight standardization: the filters, rather than the activations. Qiao et al. 2019."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
Conv = TypeVar("Conv", bound=nn.Conv2d)


class WSConv2d(nn.Conv2d):
    """Conv2d whose filters have mean 0 and variance 1 over their fan-in, (w - mean) / sqrt(var + 1e-6).

    Biased variance, eps inside the root, as timm's StdConv2d; the paper's code has the unbiased std + 1e-5.
    Parameters and state_dict keys are Conv2d's: the stored weight is the raw one. Meant for convolutions that
    a norm follows, since the scale of the output is otherwise lost.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardize(self.weight), self.bias)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> WSConv2d:
        """`conv` with standardized filters: the same parameters, hooks and settings."""
        return _as(cls, conv)


def standardize(weight: Tensor) -> Tensor:
    """`weight` (out, in / groups, h, w), each filter with mean 0 and variance 1."""
    filters = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(filters, None, None, training=True, eps=EPS).view_as(weight)


def plain(conv: WSConv2d) -> nn.Conv2d:
    """The Conv2d that `WSConv2d.of` was given."""
    return _as(nn.Conv2d, conv)


def _as(cls: type[Conv], conv: nn.Conv2d) -> Conv:
    new = cls.__new__(cls)
    # Hooks are shared: a handle removes its hook from the dictionary that it was put in.
    new.__dict__ = {
        key: value.copy() if isinstance(value, dict) and "_hooks" not in key else value
        for key, value in conv.__dict__.items()
    }
    return new
