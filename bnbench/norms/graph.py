"""A model's graphs, traced by torch.fx: one for training, one for evaluation; the model itself stays as it is."""

from __future__ import annotations

import builtins
import inspect
import random
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .activation import MODULES as ACTIVATIONS
from .places import is_norm

# What fx calls the tensors that forward makes of nothing.
CONSTANT = re.compile(r"_\w*constant_?\d+")
# Called as they are, and never traced through; every module of torch.nn but Sequential is one too.
LEAVES = (nn.modules.conv._ConvNd, nn.Linear, *ACTIVATIONS)


class UntraceableError(ValueError):
    """torch.fx cannot follow the model's forward."""


@dataclass
class Traced:
    """Both graphs of a model, by `training`: they differ by dropout and auxiliary heads.

    Nodes name modules by their paths, so that a graph outlives a swap. `constants` are the tensors that
    forward makes of nothing, which fx wants to find on the model. `fixed` are forward's arguments that the
    graphs have at their defaults, None or a bool: on those a forward branches.
    """

    model: nn.Module
    graphs: dict[bool, fx.Graph]
    constants: dict[str, Any]
    fixed: dict[str, Any]

    def __post_init__(self) -> None:
        self.modules: Mapping[str, nn.Module] = dict(self.model.named_modules())
        self._calls: dict[str, list[fx.Node]] = {}
        for graph in self.graphs.values():
            for node in graph.nodes:
                if node.op == "call_module":
                    self._calls.setdefault(str(node.target), []).append(node)

    def calls(self, path: str) -> list[fx.Node]:
        """Every call of the module at `path`, in both graphs. Edits do not touch the calls of norms."""
        return self._calls.get(path, [])


def check_rewritable(model: nn.Module) -> None:
    """ValueError for a wrapper whose inside must not change any more."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(
            f"the model is wrapped in {type(model).__name__} already: change it before wrapping it"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the model is a ScriptModule, which is compiled already: change it before scripting")
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise ValueError("the model is compiled already: change it before torch.compile")


def original_class(model: nn.Module) -> type[nn.Module]:
    """The class that the model was built with, under all rewriting."""
    rewriting = getattr(type(model), "bnbench_rewriting", None)
    return type(model) if rewriting is None else rewriting.origin


def trace(model: nn.Module) -> Traced:
    """The graphs of the forward that `model` was built with, norms and torch.nn's modules as leaves.

    Raises UntraceableError with the cause: control flow that depends on data, a question whether an input is a Tensor
    (fx's stand-in is none), random numbers drawn outside of torch's operations on the input, attributes or
    containers changed or a grad or autocast mode set inside forward (fx would lose both), a hook on a container (a
    graph calls leaves only), a forward set on the instance.

    Every part is traced in the mode of the whole: functional dropout in a part that is in another one does as
    the whole does.
    """
    check_rewritable(model)
    problem = _beyond_fx(model)
    if problem:
        raise UntraceableError(f"{original_class(model).__name__} cannot be traced by torch.fx: {problem}")
    kind, state = type(model), _State(model)
    graphs, constants, fixed = {}, {}, {}
    try:
        model.__class__ = original_class(model)
        for training in (True, False):
            for module in model.modules():
                module.training = training
            with _other_modes():  # a mode that forward sets to what it is now shows only there
                _Tracer(param_shapes_constant=True).trace(model)
            state.check()
            tracer = _Tracer(param_shapes_constant=True)
            graphs[training] = tracer.trace(model)
            constants = state.check()
            fixed = tracer.fixed
    except Exception as error:
        cause = str(error) if isinstance(error, _NotFollowed) else f"{type(error).__name__}: {error}"
        raise UntraceableError(
            f"{original_class(model).__name__} cannot be traced by torch.fx: {cause.strip().splitlines()[0]}"
        ) from error
    finally:
        model.__class__ = kind
        state.restore()
    for graph in graphs.values():
        for node in graph.nodes:
            node.type = None  # an annotation is no use to generated code, and may not print as Python
    return Traced(model, graphs, constants, fixed)


class _NotFollowed(Exception):
    """A cause of ours, in words."""


class _State:
    """What a forward can change or draw from beside its input: attributes, containers, generators of numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._attributes = [
            (module, holder, dict(holder))
            for module in model.modules()
            for holder in (vars(module), module._parameters, module._buffers, module._modules)
        ]
        own = set(nn.Module().__dict__)
        values = [
            (module, name, v)
            for module in model.modules()
            for name, v in vars(module).items()
            if name not in own
        ]
        self._containers = [
            (*each, each[2].copy()) for each in values if isinstance(each[2], list | dict | set)
        ]
        generators = [torch.default_generator, *(v for *_, v in values if isinstance(v, torch.Generator))]
        self._generators = [(generator, generator.get_state()) for generator in generators]
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)

    def check(self) -> dict[str, Any]:
        """Raise for what changed; the tensors that forward made of nothing, which fx has put on the model."""
        constants = {key: value for key, value in vars(self._model).items() if CONSTANT.fullmatch(key)}
        for module, holder, before in self._attributes:
            for name, value in holder.items():
                if name != "training" and name not in constants and before.get(name, constants) is not value:
                    raise _NotFollowed(
                        f"its forward sets {type(module).__name__}.{name}, which no graph does"
                    )
        for module, name, value, copied in self._containers:
            now, then = ([*c.keys(), *c.values()] if isinstance(c, dict) else [*c] for c in (value, copied))
            if list(map(id, now)) != list(map(id, then)):
                raise _NotFollowed(f"its forward changes {type(module).__name__}.{name}, which no graph does")
        if (
            any(not torch.equal(generator.get_state(), was) for generator, was in self._generators)
            or random.getstate() != self._python
            or str(np.random.get_state(legacy=False)) != str(self._numpy)
        ):
            raise _NotFollowed("its forward draws random numbers that no graph would draw again")
        return constants

    def restore(self) -> None:
        for _, holder, before in self._attributes:
            holder.clear()
            holder.update(before)
        for _, _, value, copied in self._containers:
            value.clear()
            value.extend(copied) if isinstance(value, list) else value.update(copied)
        for generator, was in self._generators:
            generator.set_state(was)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def _beyond_fx(model: nn.Module) -> str:
    if "forward" in vars(model):
        return "its forward was replaced on the instance; replace it on the class"
    parameters = inspect.signature(original_class(model).forward).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds and inspect.Parameter.KEYWORD_ONLY in kinds:
        return "its forward takes *args and keyword-only arguments, whose order fx would change"
    return ""


class _Tracer(fx.Tracer):
    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        self.modes = _modes()
        with _no_question_of_type():
            return super().trace(*args, **kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        forward, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        self.fixed: dict[str, Any] = {}
        for name, parameter in inspect.signature(original_class(self.root).forward).parameters.items():
            if parameter.default is None or isinstance(parameter.default, bool):
                self.fixed[name] = parameter.default
        # A placeholder, which stays for the signature, is neither None nor False: it would take the wrong branch.
        return forward, [
            self.fixed.get(str(arg.node.target), arg) if isinstance(arg, fx.Proxy) else arg for arg in args
        ]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # A buffer is read when the graph runs: fx would work out now what depends on buffers alone. (Its own
        # proxy_buffer_attributes and param_shapes_constant exclude each other.)
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    return self.create_proxy("get_attr", name, (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or is_norm(m) or isinstance(m, LEAVES)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path) and (
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        ):
            raise _NotFollowed(f"{path} has a hook, and a graph calls leaves only; remove the hook")
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise _NotFollowed("its forward changes the grad or autocast mode, which a graph would forget")
        return super().create_node(*args, **kwargs)


DEVICES = ("cpu", "cuda")


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in DEVICES),
    )


@contextmanager
def _other_modes() -> Iterator[None]:
    """Grad and autocast as they are not now."""
    autocast = [torch.is_autocast_enabled(device) for device in DEVICES]
    with torch.set_grad_enabled(not torch.is_grad_enabled()):
        for device, enabled in zip(DEVICES, autocast, strict=True):
            torch.set_autocast_enabled(device, not enabled)
        try:
            yield
        finally:
            for device, enabled in zip(DEVICES, autocast, strict=True):
                torch.set_autocast_enabled(device, enabled)


# torch's own code may ask: fx hands it stand-ins on purpose. Its functions for networks may not.
MAY_ASK = re.compile(r"torch\.(fx|_\w+|utils|overrides|nn\.parameter|nn\.modules\.module)(\.|$)")


@contextmanager
def _no_question_of_type() -> Iterator[None]:
    """isinstance(x, Tensor) and torch.is_tensor(x) of a forward raise: they would say no to fx's stand-in for x."""
    plain = builtins.isinstance

    def asked(thing: Any, kinds: Any, /) -> bool:
        if (
            plain(thing, fx.Proxy)
            and any(kind is Tensor for kind in (kinds if plain(kinds, tuple) else (kinds,)))
            and not MAY_ASK.match(sys._getframe(1).f_globals.get("__name__", ""))
        ):
            raise _NotFollowed(
                "its forward asks whether a value is a Tensor, and takes another branch for fx"
            )
        return plain(thing, kinds)

    builtins.isinstance = asked
    try:
        yield
    finally:
        builtins.isinstance = plain
