"""The code of a submission, copied when it is made: editing the checkout does not change jobs that wait. No torch.

`python -m bnbench.sweep.snapshot FOLDER [MODULE ...]` makes one and prints where it is, for `slurm/submit`.
"""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from bnbench import dotted
from bnbench.config import RunConfig
from bnbench.folders import config_folder
from bnbench.provenance import FROZEN, git_state

PACKAGE = Path(__file__).parents[1]
CARRIES_CONF = PACKAGE / "conf"  # a wheel's
CODE = tuple(suffix for suffix in importlib.machinery.all_suffixes() if suffix != ".pyc")
# Beside code, what a package reads at work: a table, a configuration; no weights, and no folders of images.
LARGEST_FILE = 1_000_000  # bytes
MOST_FILES = 100  # of a folder without code
INSTALLED = {"site-packages", "dist-packages"}


def freeze(folder: Path, modules: Iterable[str] = (), output: Path | None = None) -> Path:
    """Copy bnbench, its configurations and the named top-level modules into a new folder; put it on PYTHONPATH.

    The copy knows the commit that it was made from. Of the modules, code is copied and small files beside it;
    nothing hidden (`.env`, `.git`), and not the `output` folder of the runs, which may lie in a package.
    """
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    folder.mkdir(parents=True)
    shutil.copytree(PACKAGE, folder / "bnbench", ignore=skipped)
    if config_folder() != CARRIES_CONF:
        shutil.copytree(config_folder(), folder / "conf")
    launchers = PACKAGE.parent / "hydra_plugins" / "bnbench_launchers"
    if launchers.is_dir():
        shutil.copytree(launchers, folder / "hydra_plugins" / "bnbench_launchers", ignore=skipped)
    (folder / "bnbench" / FROZEN).write_text(json.dumps(git_state(PACKAGE)))
    for module in dict.fromkeys(modules):
        source = _own_source(module)
        if source is not None and source.is_dir():
            ignore = partial(_left_out, output)
            shutil.copytree(source, folder / source.name, ignore=ignore, ignore_dangling_symlinks=True)
        elif source is not None:
            shutil.copy2(source, folder / source.name)
    return folder


def own_modules(runs: Sequence[RunConfig]) -> list[str]:
    """The top-level modules of the user's own code that runs name by dotted path."""
    names = [name for run in runs for name in (run.norm.name, run.model.name, run.data.name)]
    return list(dict.fromkeys(name.partition(".")[0] for name in names if dotted.is_dotted(name)))


def _own_source(module: str) -> Path | None:
    """A module's file, or a package's folder; None for what is installed, which nobody edits in passing."""
    spec = dotted.find_module(module)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        source = Path(next(iter(spec.submodule_search_locations)))
    elif spec.origin:
        source = Path(spec.origin)
    else:
        return None
    place = source.resolve()
    installed = INSTALLED & set(place.parts) or place.is_relative_to(
        Path(sysconfig.get_path("stdlib")).resolve()
    )
    return None if installed or not source.exists() else source


def _left_out(output: Path | None, folder: str, names: list[str]) -> list[str]:
    """Of what a folder of the user's package holds: what is no code and none of its small files."""
    here = Path(folder)
    if not any(name.endswith(CODE) for name in names) and len(names) > MOST_FILES:
        return names
    return [
        name
        for name in names
        if name[0] == "." or name == "__pycache__" or not _is_wanted(here / name, output)
    ]


def _is_wanted(path: Path, output: Path | None) -> bool:
    if path.is_dir():
        # A link to data may hold anything, and one to a folder above has no end.
        above = path.parent.resolve().is_relative_to(path.resolve())
        linked = path.is_symlink() and (above or not (path / "__init__.py").exists())
        return not linked and path.resolve() != output
    return path.name.endswith(CODE) or (path.is_file() and path.stat().st_size <= LARGEST_FILE)


if __name__ == "__main__":
    print(freeze(Path(sys.argv[1]).absolute(), sys.argv[2:]))
