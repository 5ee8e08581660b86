"""From the words of a command line to checked runs, by Hydra's own grammar. No torch.

Hydra's errors are turned into one line with the known names; no folder is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bnbench.config import RunConfig, from_mapping
from bnbench.folders import CONFIG_NAME, config_folder
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

_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


@dataclass(frozen=True)
class Job:
    """One combination of a request: its words, and the run that they make or the reason why they make none."""

    words: list[str]
    run: RunConfig | None
    problem: str | None = None


@dataclass(frozen=True)
class Request:
    """What a command line asks for: its combinations, and the words that make Hydra compose just those."""

    jobs: list[Job]
    words: list[str]
    multirun: bool
    sweep_dir: str  # where Hydra puts multirun.yaml
    launcher: Mapping[str, Any]
    sweeper: str | None = None  # one that chooses the runs as it goes; `jobs` then holds what it starts from

    @property
    def runs(self) -> list[RunConfig]:
        return [job.run for job in self.jobs if job.run is not None]


def read_request(
    overrides: Sequence[str],
    multirun: bool,
    extra_config_dir: str | None = None,
    *,
    refuse: bool = True,
) -> Request:
    """Every run that the words ask for: one, or in a multirun the product of the sweeps.

    An experiment's own sweep over a key gives way to one on the command line. Raises ValueError with one
    line for a mistake: with `refuse` for the first in any combination, else only for one that the words make as
    a whole, and a combination's own is its job's `problem`.
    """
    with _hydra(extra_config_dir) as searchpath:
        base = _compose([*searchpath, *_without_sweeps(overrides)], hydra=True)
        swept: dict[str, Any] = dict(base.hydra.sweeper.get("params") or {})
        launcher: Any = OmegaConf.to_container(base.hydra.launcher, resolve=True)
        given = _parse(overrides)
        for override in given:
            if override.key_or_group in _group_names() and isinstance(override.value(), list):
                group = override.key_or_group
                raise ValueError(f"{override.input_line}: a run has one {group}; to sweep: -m {group}=a,b")
        if not multirun and base.hydra.mode != RunMode.MULTIRUN:
            unset = [key for key in swept if key not in {override.key_or_group for override in given}]
            if unset:
                raise ValueError(f"this experiment sweeps {', '.join(unset)}: add -m, or give each one value")
            for override in given:
                if override.is_sweep_override():
                    raise ValueError(f"{override.input_line} gives several values: add -m to sweep over them")
            run = check(_compose([*searchpath, *overrides]))
            return Request([Job(list(overrides), run)], list(overrides), False, base.dir, launcher)
        sweeper = base.hydra.sweeper._target_
        if sweeper != _BASIC_SWEEPER:  # it alone knows which values it will try
            start = Job(_without_sweeps(overrides), check(base))
            return Request([start], list(overrides), True, base.dir, launcher, sweeper)
        chosen = {override.key_or_group for override in given}
        words = [f"{key}={value}" for key, value in swept.items() if key not in chosen] + list(overrides)
        batches = BasicSweeper.split_arguments(_parse(words), max_batch_size=None)
        jobs = [_job(list(job), searchpath, refuse) for batch in batches for job in batch]
        problems = {job.problem for job in jobs}
        if len(problems) == 1 and (problem := jobs[0].problem) is not None:
            raise ValueError(problem)  # what no combination escapes is a mistake of the words that they share
        return Request(jobs, ["hydra.sweeper.params=null", *words], True, base.dir, launcher)


def check_keys(overrides: Sequence[str], extra_config_dir: str | None = None) -> None:
    """Raise ValueError with one line for a group, choice or key that there is not; values are not looked at."""
    with _hydra(extra_config_dir) as searchpath:
        _compose([*searchpath, *_without_sweeps(overrides)], hydra=True)
        for override in _parse(overrides):
            if override.is_sweep_override():
                raise ValueError(f"{override.input_line} gives several values, and this shows one run")


def compose_jobs(overrides: Sequence[str], multirun: bool = False) -> list[RunConfig]:
    """The runs of `read_request`."""
    return read_request(overrides, multirun).runs


def check(config: DictConfig) -> RunConfig:
    """The run that a composed configuration describes. ValueError with one line if it is not one."""
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            key = str(error.full_key)
            meaning = {"data.root": " (the folder that holds train/ and test/)"}.get(key, "")
            raise ValueError(f"{key} has no value: give {key}=...{meaning}") from None
        raise ValueError(str(error).splitlines()[0]) from None
    assert isinstance(values, dict)
    return from_mapping({str(key): value for key, value in values.items()})


def _job(words: list[str], searchpath: Sequence[str], refuse: bool) -> Job:
    try:
        return Job(words, check(_compose([*searchpath, *words])))
    except ValueError as error:
        if refuse:
            raise
        return Job(words, None, str(error))


@contextmanager
def _hydra(extra_config_dir: str | None) -> Iterator[list[str]]:
    """Hydra ready to compose; yields the overrides that add a user's own config folder."""
    if extra_config_dir is not None and not Path(extra_config_dir).is_dir():
        raise ValueError(f"--config-dir {extra_config_dir} is no folder")
    searchpath = []
    if extra_config_dir is not None:
        quoted = str(Path(extra_config_dir).absolute()).replace("'", r"\'")
        searchpath = [f"hydra.searchpath=['file://{quoted}']"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield searchpath


def _parse(words: Sequence[str]) -> list[Any]:
    parser, parsed = OverridesParser.create(), []
    for word in words:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            raise ValueError(
                f"cannot read {word!r}: the form is key=value, with quotes round a value that has special characters"
            ) from None
    return parsed


def _without_sweeps(words: Sequence[str]) -> list[str]:
    """The words that hold one value: what the sweep's own settings can be composed from."""
    return [o.input_line for o in _parse(words) if not o.is_sweep_override()]


def _compose(words: list[str], hydra: bool = False) -> DictConfig:
    try:
        return compose(CONFIG_NAME, overrides=words, return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, words)) from None
    except ValueError:  # Hydra's own, for a group set to null
        for group, _, choice in (word.partition("=") for word in words):
            if group in _group_names() and choice in ("null", ""):
                known = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
                raise ValueError(f"{group}={choice} chooses nothing; known: {', '.join(known)}") from None
        raise


def _explain(error: Exception, words: list[str]) -> str:
    text = str(error)
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if choice:
        listed = text.partition("Available options in")[2].partition("Config search path")[0]
        group, _, folder = choice[1].partition("/")
        if group not in _group_names():  # hydra/launcher
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


def _known_keys(wrong: str, words: list[str]) -> list[str]:
    """The keys beside a wrong one: those of its deepest node that exists, groups chosen as asked."""
    groups = [w for w in words if w.partition("=")[0] in (*_group_names(), "hydra/launcher")]
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


def at_home(words: Sequence[str]) -> list[str]:
    """The words with ~ at the start of a value as the home folder: no shell does that behind `data.root=`."""
    home = str(Path.home())
    return [re.sub(r"""(?<=[=,'"])~(?=/)""", lambda _: home, word) for word in words]


def _group_names() -> list[str]:
    return [folder.name for folder in config_folder().iterdir() if folder.is_dir() and folder.name != "hydra"]
