"""Several callbacks as one, forwarding only the hooks that they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback

HOOKS = (
    "on_save_checkpoint",
    "on_load_checkpoint",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_after_backward",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_exception",
)
STATE = ("state_dict", "load_state_dict")  # which `Checkpoint` asks the parts for by itself


def bundle(parts: Sequence[Callback]) -> Callback:
    """One callback that calls `parts` in their order.

    Each hook of each callback is called at every step, whether it does anything or not, and most do nothing.
    Raises ValueError for a part with a hook that would not be forwarded.
    """
    bundled = Callback()
    for part in parts:
        hooks = [name for name in dir(Callback) if not name.startswith("_")]
        mine = {name for name in hooks if getattr(type(part), name) is not getattr(Callback, name)}
        if mine := mine - {*HOOKS, *STATE}:
            raise ValueError(f"{type(part).__name__} has {', '.join(sorted(mine))}: add it to bundle.HOOKS")
    for hook in HOOKS:
        bound = [
            getattr(part, hook) for part in parts if getattr(type(part), hook) is not getattr(Callback, hook)
        ]
        if bound:
            setattr(bundled, hook, _in_turn(bound))
    return bundled


def _in_turn(functions: Sequence[Callable[..., Any]]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        for function in functions:
            function(*arguments)

    return call
