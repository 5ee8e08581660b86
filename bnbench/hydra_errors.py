"""Hydra's and OmegaConf's errors as one line with what is known, and what may have been meant. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnbench.folders import CONFIG_NAME, config_folder, config_groups
from bnbench.records import flatten
from bnbench.suggest import last, near, unknown

# What keys are called elsewhere, without _.
ELSEWHERE = {
    "batchsize": ("global_batch", "norm.batch_size"),
    "batch": ("global_batch",),
    "learningrate": ("optim.lr",),
    "nbs": ("norm.batch_size",),
    "wd": ("optim.weight_decay",),
    **dict.fromkeys(("gpus", "ranks", "worldsize"), ("trainer.devices",)),
}


def explain(error: Exception, words: Sequence[str]) -> str:
    text = str(error)
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if choice:
        listed = text.partition("Available options in")[2].partition("Config search path")[0]
        group, _, folder = choice[1].partition("/")
        if group not in config_groups():  # hydra/launcher
            group, folder = choice[1], ""
        known = [*re.findall(r"^\t(\S+)", listed, re.MULTILINE), *_in_folders(group)]
        return unknown(group, f"{folder}/{choice[2]}".removeprefix("/"), known)
    key = re.search(r"Could not override '([^']+)'", text)
    if key and (options := re.match(r"(model|norm|data)\.options\b", key[1])):
        return f"{key[1]}: options of your own are added one by one: +{options[0]}.NAME=VALUE"
    if key:
        known = _known_keys(key[1], words)
        return unknown("key", key[1], known, _meant(key[1], known))
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _known_keys(wrong: str, words: Sequence[str]) -> list[str]:
    """The keys beside a wrong one: those of its deepest node that exists, groups chosen as asked."""
    groups = [w for w in words if w.partition("=")[0] in (*config_groups(), "hydra/launcher")]
    hydras = wrong.startswith("hydra.")
    try:
        node: Any = compose(CONFIG_NAME, overrides=groups, return_hydra_config=hydras)
    except (HydraException, OmegaConfBaseException):
        node = compose(CONFIG_NAME, return_hydra_config=hydras)
    prefix = ""
    for part in wrong.split(".")[:-1]:
        if not (OmegaConf.is_dict(node) and part in node):
            break
        node, prefix = node[part], f"{prefix}{part}."
    return [f"{prefix}{key}" for key in node] if OmegaConf.is_dict(node) else []


def _meant(wrong: str, beside: Sequence[str]) -> Sequence[str]:
    """The keys that a wrong one may stand for: by its name elsewhere, beside it, or of that name in another group."""
    group, _, name = wrong.rpartition(".")
    called = ELSEWHERE.get(name.replace("_", "").lower(), ())
    own = [key for key in called if group and key.startswith(f"{group}.")]
    found = own or called or near(wrong, beside)
    if found:
        return found
    everything: Any = OmegaConf.to_container(compose(CONFIG_NAME))
    return near(name, [key for key in flatten(everything) if last(key) == name])


def _in_folders(group: str) -> list[str]:
    """The choices of a group that lie in folders of it: claims/small_batch."""
    root = config_folder() / group
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))
