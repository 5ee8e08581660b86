"""A user's own norm, model or dataset by dotted path: `my_package.norms.MyNorm`. No torch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


def is_dotted(name: str) -> bool:
    return "." in name


def check_findable(key: str, name: str) -> None:
    """Raise ValueError with one line if the module that `name` lies in cannot be found.

    Nothing is imported, since a user's module imports torch. The working directory counts, as it does for
    `python -m`; last, so that a file in it hides no installed package. Ranks inherit the search path.
    """
    if not is_dotted(name) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{key}={name!r} must be a dotted path to your own code, such as my_module.MyClass")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module = name.rpartition(".")[0]
    if find_module(module) is None:
        raise ValueError(
            f"{key}={name}: there is no module {module} here ({here}) or on the Python path: start from the "
            "folder that holds it, install its package, or set PYTHONPATH"
        )


def load(key: str, name: str) -> Any:
    """What a dotted path names. ValueError if its module has no such attribute, naming what it defines."""
    module_name, _, attribute = name.rpartition(".")
    check_findable(key, name)
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        listed = f"; it defines {', '.join(own)}" if own else ""
        raise ValueError(f"{key}={name}: module {module_name} has no {attribute}{listed}")
    return getattr(module, attribute)


def call(key: str, name: str, **options: Any) -> Any:
    """What a dotted path names, called with options. ValueError if its signature does not take them."""
    function: Callable[..., Any] = load(key, name)
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise ValueError(f"{key}={name} does not take the options it is given: {error}") from None
    return function(**options)


def source_digest(name: str) -> str | None:
    """What the file of a dotted path's module holds, in 16 hexadecimal digits; None if it is no file."""
    return _file_digest(name.rpartition(".")[0])


def check_unchanged(key: str, name: str, source: str | None) -> None:
    """Raise ValueError if this process has imported another file than the one of digest `source`.

    Somebody has edited it since the run was planned: its result would go by the name of code that did not run.
    """
    if _digest_at_import(name.rpartition(".")[0]) != source:
        raise ValueError(
            f"{key}={name}: its file was changed since this command began, and this run is of the file as it was: "
            "start the command again"
        )


@functools.cache
def _digest_at_import(module: str) -> str | None:
    found = _file_digest(module)
    with contextlib.suppress(ImportError):  # what loads it tells
        importlib.import_module(module)
    return found


def _file_digest(module: str) -> str | None:
    spec = find_module(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def find_module(module: str) -> ModuleSpec | None:
    """Like importlib's find_spec, which would import the packages above."""
    if module in sys.builtin_module_names:
        return None
    path: Any = None
    spec = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return None
    return spec
