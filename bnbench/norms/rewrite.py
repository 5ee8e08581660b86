"""All rewrites of a model at once, always from the forward it was built with, on the same model object.

The model gets a subclass of its own class whose forward runs a generated function per mode. So state_dict keys,
isinstance, deepcopy, hooks on leaves and torch.compile are as before, and going back is setting the class back.
A container inside (`model.layer1`) that is called by itself still runs as it was built, and its hooks do not
run, since a graph calls leaves only; so do other methods of the model that call layers (`forward_features`).
A graph is of the model as it was: plain attributes that forward reads, activation checkpointing and tensors that
it makes of nothing, with their device, are what they were then.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .edits import erase_relus, move_norms
from .graph import Traced, original_class, trace
from .places import norm_places

PLACEMENTS = ("before", "after")


@dataclass(frozen=True)
class Rewriting:
    """What a model's class was rewritten to do."""

    origin: type[nn.Module]
    placement: str
    erased: tuple[str, ...]  # norms whose ReLU is gone, since they include it


def rewriting(model: nn.Module) -> Rewriting:
    """How `model` is rewritten now; placement before and nothing erased if it is not."""
    return getattr(type(model), "bnbench_rewriting", None) or Rewriting(type(model), "before", ())


def check_inner(model: nn.Module) -> None:
    """ValueError if a module inside `model` was rewritten by itself: only there can it be changed again."""
    for path, module in model.named_modules():
        if path and hasattr(type(module), "bnbench_rewriting"):
            raise ValueError(
                f"{path} of {type(model).__name__} was rewritten by itself: call this on model.{path} instead"
            )


def rewrite(
    model: nn.Module, placement: str, erase: Collection[str] = (), traced: Traced | None = None
) -> None:
    """Make `model` run with its norms placed so, and without the ReLU behind the norms at the paths `erase`.

    Consumes `traced`. Leaves the class that the model was built with where there is nothing to rewrite.
    """
    if placement == "before" and not erase:
        model.__class__ = original_class(model)
        return
    traced = trace(model) if traced is None else traced
    erased = erase_relus(traced, erase)
    moved = move_norms(traced, {p.path for p in norm_places(model)[0]}) if placement == "after" else []
    if not erased and not moved:
        model.__class__ = original_class(model)
        return
    install(traced, Rewriting(original_class(model), placement, tuple(erased)))


def install(traced: Traced, how: Rewriting) -> None:
    """Give the model the class that runs `traced`'s graphs."""
    model, before = traced.model, type(traced.model)
    body = {
        "__module__": how.origin.__module__,
        "__qualname__": how.origin.__qualname__,
        "__doc__": how.origin.__doc__,
        "__deepcopy__": _deepcopy,
        "__reduce_ex__": _reduce,
        "__init__": _init,
        "__prepare_scriptable__": _refuse_script,
        "bnbench_rewriting": how,
        **traced.constants,
    }
    metaclass: Any = type(how.origin)
    kind = metaclass(how.origin.__name__, (how.origin,), body)
    try:
        model.__class__ = kind
        forwards = {}
        for training, graph in traced.graphs.items():
            graph.lint()
            # Only the function is kept: a GraphModule would hold this model's parameters for its copies.
            forwards[training] = type(fx.GraphModule(model, graph)).forward
        kind.forward = _by_mode(how.origin.forward, forwards, traced.fixed, tuple(model._modules))
    except BaseException:
        model.__class__ = before
        raise


def _by_mode(
    original: Callable[..., Any],
    forwards: dict[bool, Callable[..., Any]],
    fixed: dict[str, Any],
    children: tuple[str, ...],
) -> Callable[..., Any]:
    training, evaluation = forwards[True], forwards[False]
    names = list(inspect.signature(original).parameters)[1:]
    checked = [(names.index(name), name, default) for name, default in fixed.items()]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tuple(self._modules) != children:
            raise ValueError(
                f"{type(self).__name__} was rewritten with other layers than it has now, and runs with those alone: "
                'add layers before swap_norms and place_norms, or undo them (a swap to "bn", placement "before")'
            )
        for i, name, default in checked:
            if (args[i] if i < len(args) else kwargs.get(name, default)) is not default:
                raise ValueError(
                    f"{type(self).__name__} was rewritten with its forward's default {name}={default!r}, and "
                    "runs with no other: a graph has one branch"
                )
        if self.training:
            return training(self, *args, **kwargs)
        return evaluation(self, *args, **kwargs)

    return functools.wraps(original)(forward)


def _init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    # Another model of this class, such as a slice of a Sequential, is not the one that the graph is of.
    self.__class__ = rewriting(self).origin
    self.__init__(*args, **kwargs)  # type: ignore[misc]


def _refuse_script(self: nn.Module) -> nn.Module:
    raise ValueError(
        f"{type(self).__name__} was rewritten, and torch.jit.script would compile the forward it was built with: "
        "use torch.jit.trace or torch.export"
    )


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # By itself deepcopy would take the way of pickle, and trace again.
    origin: Any = original_class(self)
    if hasattr(origin, "__deepcopy__"):
        twin = origin.__deepcopy__(self, memo)
    else:
        twin = origin.__new__(origin)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
    twin.__class__ = type(self)
    return twin


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    how = rewriting(self)
    return _unpickled, (how.origin, how.placement, how.erased), self.__getstate__()


def _unpickled(origin: type[nn.Module], placement: str, erased: tuple[str, ...]) -> nn.Module:
    """An empty model that rewrites itself once its state is there."""

    def set_state(self: nn.Module, state: dict[str, Any]) -> None:
        self.__class__ = origin
        self.__setstate__(state)
        rewrite(self, placement, erased)

    metaclass: Any = type(origin)
    kind = metaclass(origin.__name__, (origin,), {"__setstate__": set_state})
    return kind.__new__(kind)
