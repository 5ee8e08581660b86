"""The one door: a norm's name to its builder."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .base import Norm
from .batch import BatchNorm2d, GhostBatchNorm2d, check_span
from .channel import GroupNorm, InstanceNorm2d, LayerNorm, LayerNorm2d
from .evonorm import EvoNormB0, EvoNormS0
from .frn import FilterResponseNorm2d
from .frozen import FrozenBatchNorm2d
from .identity import INITS, NoNorm2d
from .renorm import BatchRenorm2d
from .sync import SyncBatchNorm2d
from .virtual import VirtualBatchNorm2d

# Their convolutions are standardized too, by `swap_norms`.
WEIGHT_STANDARDIZED = ("ws_gn", "ws_bn")


def batch_norm(
    num_features: int,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    ghosts: int = 1,
    process_group: Any = None,
    statistics: str = "mean",
) -> nn.BatchNorm2d:
    """Batch normalization at any span: a device (default), `ghosts` groups inside it, or a group of ranks.

    A given `process_group` spans its ranks (`torch.distributed.group.WORLD` for all of them; before the world is
    initialized that is None, and None is a device). Raises ValueError in training for a group that is none.
    Raises ValueError if both are asked for: nothing shares statistics with a part of another rank's batch.
    """
    check_span("bn", ghosts, process_group)
    if ghosts > 1:
        return GhostBatchNorm2d(
            num_features, ghosts=ghosts, eps=eps, momentum=momentum, statistics=statistics
        )
    if process_group is not None:
        return SyncBatchNorm2d(num_features, process_group=process_group, eps=eps, momentum=momentum)
    return BatchNorm2d(num_features, eps=eps, momentum=momentum)


def frozen_batch_norm(
    num_features: int,
    *,
    after: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    ghosts: int = 1,
    process_group: Any = None,
    statistics: str = "mean",
) -> Norm:
    """Batch normalization by fixed statistics: from the start, or `after` a fraction of training.

    0: `FrozenBatchNorm2d`, affine part fixed too. Above 0: `batch_norm` until whoever trains calls
    `freeze_statistics`, affine part trained throughout.
    """
    if not 0 <= after < 1:
        raise ValueError(f"frozen: after={after} must be a fraction of training, from 0 to below 1")
    if after == 0:
        return FrozenBatchNorm2d(num_features, eps=eps)
    return batch_norm(
        num_features, eps=eps, momentum=momentum, ghosts=ghosts, process_group=process_group,
        statistics=statistics,
    )  # type: ignore[return-value]  # fmt: skip


def no_norm(num_features: int, *, affine: bool = True, init: str = "zero_gamma") -> NoNorm2d:
    """`NoNorm2d`; `init` is what `swap_norms` does for the depth of the whole model."""
    if init not in INITS:
        raise ValueError(f"none: init={init!r} is unknown; known: {', '.join(INITS)}")
    return NoNorm2d(num_features, affine=affine)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": batch_norm,
    "syncbn": SyncBatchNorm2d,
    "ghost": GhostBatchNorm2d,
    "brn": BatchRenorm2d,
    "vbn": VirtualBatchNorm2d,
    "frozen": frozen_batch_norm,
    "gn": GroupNorm,
    "ln": LayerNorm,
    "ln2d": LayerNorm2d,
    "in": InstanceNorm2d,
    "frn": FilterResponseNorm2d,
    "evonorm_s0": EvoNormS0,
    "evonorm_b0": EvoNormB0,
    "ws_gn": GroupNorm,
    "ws_bn": batch_norm,
    "none": no_norm,
}


def build_norm(kind: str, num_features: int, **options: Any) -> nn.Module:
    """The layer for `num_features` channels. ValueError for an unknown kind or option, naming the known.

    A kind with a dot is a user's own: `package.module.name` is imported and called like a builder above.
    """
    builder = find_builder(kind)
    parameters = inspect.signature(builder).parameters
    known = [name for name in parameters if name != "num_features"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            if name not in known:
                raise ValueError(
                    f"unknown option {name!r} of norm {kind!r}; known: {', '.join(known) or 'none'}"
                )
    for name, parameter in parameters.items():
        if (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.default is parameter.empty
            and name not in options
        ):
            raise ValueError(f"norm {kind!r} needs {name}: give {name}=...")
    if "." not in kind:
        _check_numbers(kind, num_features=num_features, **options)
    return builder(num_features, **options)


def _check_numbers(kind: str, **options: Any) -> None:
    """Raise ValueError for a setting that is no number of its range; what else it must be, the layers say."""
    for name, value in options.items():
        if name in ("num_features", "num_groups", "ghosts"):
            if not isinstance(value, int) or (name == "num_features" and value < 1):
                raise ValueError(f"{kind}: {name}={value!r} must be a whole number, at least 1")
        elif name == "momentum":
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(
                    f"{kind}: momentum={value!r} must be a number from 0 to 1, the weight of the new batch"
                )
        elif name == "eps" and (not isinstance(value, int | float) or value < 0):
            raise ValueError(f"{kind}: eps={value!r} must be a number, at least 0")


def find_builder(kind: str) -> Callable[..., nn.Module]:
    """What builds a kind, from `NORMS` or a dotted path; ValueError, naming the known, if nothing does."""
    builder = _imported(kind) if "." in kind else NORMS.get(kind)
    if builder is None:
        raise ValueError(f"unknown norm {kind!r}; known: {', '.join(NORMS)}, or a dotted path to your own")
    return builder


def _imported(path: str) -> Callable[..., nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: an empty name
        raise ValueError(f"norm {path!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ValueError(f"norm {path!r} is not callable: it must build a layer from num_features")
    return found
