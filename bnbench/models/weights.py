"""Pretrained weights from a local file, into a model as it was built (BatchNorm2d, before any swap)."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

# Parts that a file may lack, or have where the model was built without them.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# torchvision's DenseNet files are older than its module names: denselayer1.norm.1.weight.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def load_weights(model: nn.Module, path: str, num_classes: int) -> list[str]:
    """Load a state_dict that `torch.load(..., weights_only=True)` reads; returns the keys that were left alone.

    The file holds the state_dict itself, or one under `state_dict` or `model`; `module.` (DDP's) may stand
    before each key. A classifier for another number of classes, and auxiliary heads that only one of the
    two has, keep their initialisation, and a UserWarning says so.

    Raises ValueError for a file that is missing or is no such file, and for every other difference in keys
    or shapes, with counts and examples.
    """
    state = _read(path)
    own = model.state_dict()
    classifiers = _classifiers(model, num_classes)
    left = [
        key
        for key in own
        if (key in classifiers and key in state and _other_classes(state[key], own[key]))
        or (key not in state and key.startswith(AUXILIARY))
    ]
    missing = [key for key in own if key not in state and key not in left]
    unexpected = [key for key in state if key not in own and not key.startswith(AUXILIARY)]
    shapes = [
        f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and key not in left and state[key].shape != own[key].shape
    ]
    # Files from before torch counted batches lack that one buffer.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ValueError(
            f"model.weights={path} does not fit {type(model).__name__}: of its {len(own)} tensors "
            f"{'; '.join(problems)}"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own and k not in left}, strict=False)
    if left:
        warnings.warn(
            f"model.weights={path}: {', '.join(left)} keep their initialisation (other classes, or a head "
            "that the file lacks)",
            stacklevel=2,
        )
    return left


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"model.weights={path} is not there: give a file that torch.save wrote, or null")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model.weights={path} is no file that torch.load reads with weights_only=True "
            f"({type(error).__name__}): save a state_dict, and nothing else, by torch.save"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"model.weights={path} holds no state_dict, a mapping of names to tensors")
    return {_OLD_DENSENET.sub(r"\1\2", str(key).removeprefix("module.")): v for key, v in found.items()}


def _classifiers(model: nn.Module, num_classes: int) -> set[str]:
    """Keys of the layers whose output is the classes'."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.shape[0] == num_classes
    }


def _other_classes(stored: Tensor, own: Tensor) -> bool:
    return stored.ndim == own.ndim and stored.shape[1:] == own.shape[1:] and len(stored) != len(own)
