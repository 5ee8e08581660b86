"""From the words of a command line to checked runs, by Hydra's own grammar. No torch.

Hydra's errors are turned into one line with the known names; no folder is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bnbench.config import RunConfig, from_mapping
from bnbench.folders import config_groups
from bnbench.hydra_compose import Combinations, composed, parse, ready, without_sweeps

Composed = Callable[[Sequence[str]], DictConfig]
_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
_HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # no run's files go there


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
    with ready(extra_config_dir):
        base = composed(without_sweeps(overrides), hydra=True)
        swept: dict[str, Any] = dict(base.hydra.sweeper.get("params") or {})
        sweeper = base.hydra.sweeper._target_
        launcher: Any = OmegaConf.to_container(base.hydra.launcher, resolve=True)
        given = parse(overrides)
        for override in given:
            if override.key_or_group in config_groups() and isinstance(override.value(), list):
                group = override.key_or_group
                raise ValueError(f"{override.input_line}: a run has one {group}; to sweep: -m {group}=a,b")
            if override.key_or_group in _HYDRAS_FOLDERS:
                folder = "..." if override.is_sweep_override() else override.get_value_element_as_str()
                raise ValueError(
                    f"{override.input_line}: no run goes into that folder of Hydra's; set dir={folder} instead"
                )
        if sweeper == _BASIC_SWEEPER:
            _check_values(given)
        if not multirun and base.hydra.mode != RunMode.MULTIRUN:
            unset = [key for key in swept if key not in {override.key_or_group for override in given}]
            if unset:
                raise ValueError(f"this experiment sweeps {', '.join(unset)}: add -m, or give each one value")
            for override in given:
                if override.is_sweep_override():
                    raise ValueError(f"{override.input_line} gives several values: add -m to sweep over them")
            return Request([Job(list(overrides), check(base))], list(overrides), False, base.dir, launcher)
        if sweeper != _BASIC_SWEEPER:  # it alone knows which values it will try
            start = Job(without_sweeps(overrides), check(base))
            return Request([start], list(overrides), True, base.dir, launcher, sweeper)
        chosen = {override.key_or_group for override in given}
        words = [f"{key}={value}" for key, value in swept.items() if key not in chosen] + list(overrides)
        parsed = parse(words)
        _check_values(parsed)  # also an experiment's own
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        combinations = Combinations()
        jobs = [_job(list(job), refuse, combinations.composed) for batch in batches for job in batch]
        problems = {job.problem for job in jobs}
        if len(problems) == 1 and (problem := jobs[0].problem) is not None:
            raise ValueError(problem)  # what no combination escapes is a mistake of the words that they share
        return Request(jobs, ["hydra.sweeper.params=null", *words], True, base.dir, launcher)


def _check_values(overrides: Sequence[Override]) -> None:
    """Raise ValueError for a sweep without values that can be told one by one."""
    for override in overrides:
        word, key = override.input_line, override.key_or_group
        if isinstance(ends := override.value(), IntervalSweep):
            raise ValueError(
                f"{word}: an interval is for a sweeper that chooses values as it goes; give values: "
                f"-m {key}={ends.start:g},{ends.end:g}"
            )
        if override.is_sweep_override() and not list(override.sweep_iterator()):
            known: list[str] = []
            if override.value_type == ValueType.GLOB_CHOICE_SWEEP and override.config_loader is not None:
                known = override.config_loader.get_group_options(key)
            raise ValueError(f"{word} gives no value" + (f"; known: {', '.join(known)}" if known else ""))


def check_keys(overrides: Sequence[str], extra_config_dir: str | None = None) -> None:
    """Raise ValueError with one line for a group, choice or key that there is not; values are not looked at."""
    with ready(extra_config_dir):
        composed(without_sweeps(overrides), hydra=True)
        for override in parse(overrides):
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


def _job(words: list[str], refuse: bool, compose: Composed) -> Job:
    try:
        return Job(words, check(compose(words)))
    except ValueError as error:
        if refuse:
            raise
        return Job(words, None, str(error))


def at_home(words: Sequence[str]) -> list[str]:
    """The words with ~ at the start of a value as the home folder: no shell does that behind `data.root=`."""
    home = str(Path.home())
    return [re.sub(r"""(?<=[=,'"])~(?=/)""", lambda _: home, word) for word in words]
