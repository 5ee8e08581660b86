"""Where a model holds its norms, and over how many channels each normalizes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .base import NORM_TYPES, Norm

# Set on a user's own layer by swap_norms, so that it is known for a norm ever after.
FOREIGN_FEATURES = "bnbench_num_features"
OTHER_DIMENSIONS = (
    nn.BatchNorm1d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A norm and every path at which the model holds it. `reason` says why it cannot be replaced, if so."""

    paths: tuple[str, ...]
    module: nn.Module
    num_features: int = 0
    reason: str = ""

    @property
    def path(self) -> str:
        """The first of them, which is also its name in a traced graph."""
        return self.paths[0]


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORM_TYPES) or hasattr(module, FOREIGN_FEATURES)


def norm_places(model: nn.Module) -> tuple[list[Place], list[Place]]:
    """The norms of `model` in order: those over the channels of (N, C, H, W), and the rest with reasons.

    A norm inside another, as a user's own layer may hold one, is a part of it.
    """
    paths: dict[nn.Module, list[str]] = {}
    norms: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        parents = path.split(".")
        inner = any(".".join(parents[:i]) in norms for i in range(len(parents)))
        if is_norm(module) and not inner:
            norms.add(path)
            paths.setdefault(module, []).append(path)
    replaceable, skipped = [], []
    for module, held_at in paths.items():
        found = _channels(module)
        if isinstance(found, int):
            replaceable.append(Place(tuple(held_at), module, num_features=found))
        else:
            skipped.append(Place(tuple(held_at), module, reason=found))
    return replaceable, skipped


def _channels(module: nn.Module) -> int | str:
    """The C of a norm over (N, C, H, W), or why there is none to tell."""
    if hasattr(module, FOREIGN_FEATURES):
        return getattr(module, FOREIGN_FEATURES)
    name = type(module).__name__
    if isinstance(module, Norm):
        return module.num_features
    if isinstance(module, OTHER_DIMENSIONS):
        return f"{name} normalizes no (N, C, H, W)"
    if isinstance(module, nn.LayerNorm) and _is_torchvisions_layer_norm_2d(module):
        return int(module.normalized_shape[0])
    if (
        isinstance(module, nn.LayerNorm)
        and type(module) is nn.LayerNorm
        and len(module.normalized_shape) == 3
    ):
        return int(module.normalized_shape[0])
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return f"its shape {tuple(module.normalized_shape)} does not say which dimension holds channels"
    if _defines_forward(module):
        return f"{name} has a forward of its own, which may do more than normalize"
    channels = getattr(module, "num_features", getattr(module, "num_channels", None))
    if channels is None:  # torchvision's FrozenBatchNorm2d
        weight = getattr(module, "weight", None)
        return f"{name} has no channels to read" if weight is None else len(weight)
    return channels or f"{name} does not know its channels before a first forward"


def _is_torchvisions_layer_norm_2d(module: nn.Module) -> bool:
    """ConvNeXt's, by name: importing torchvision.models only to ask would take a second."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("torchvision.models.convnext", "LayerNorm2d")


def _defines_forward(module: nn.Module) -> bool:
    """Whether a subclass from outside of torch and torchvision replaced forward, as timm's BatchNormAct2d."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return not owner.__module__.startswith(("torch.", "torchvision."))
