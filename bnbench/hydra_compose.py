"""Configurations out of conf/ by Hydra: one from words, or those of a sweep's combinations. No torch."""

from __future__ import annotations

import copy
import itertools
import operator
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnbench.folders import CONFIG_NAME, config_folder, config_groups
from bnbench.hydra_errors import explain


@contextmanager
def ready(extra_config_dir: str | None) -> Iterator[None]:
    """Hydra ready to compose, also from a user's own config folder; as `--config-dir` adds it, so that globs see it."""
    if extra_config_dir is not None and not Path(extra_config_dir).is_dir():
        raise ValueError(f"--config-dir {extra_config_dir} is no folder")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        if extra_config_dir is not None:
            loader = _loader()
            path = loader.get_search_path()
            folder = f"file://{Path(extra_config_dir).absolute()}"
            path.prepend("command-line", folder, SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(path)
        yield


def _loader() -> ConfigLoaderImpl:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None and isinstance(hydra.config_loader, ConfigLoaderImpl)
    return hydra.config_loader


def parse(words: Sequence[str]) -> list[Override]:
    """The words as Hydra reads them, `ready` to compose: a glob lists the choices that it has then."""
    parser, parsed = OverridesParser.create(_loader()), []
    for word in words:
        try:
            parsed += parser.parse_overrides([word])  # parse_override gives a glob no choices
        except HydraException:
            raise ValueError(f"cannot read {word!r}: {_way_out(word, parser)}") from None
    return parsed


def _way_out(word: str, parser: OverridesParser) -> str:
    """The word ready to paste, where quotes that the shell leaves make it one that Hydra reads."""
    key, equals, value = word.partition("=")
    if not equals:
        return "it has no =; the form is key=value"
    rule = "the form is key=value, with quotes round a value that has special characters"
    if value.startswith(("[", "{")) or set(value) & set("\"'\\"):
        return rule  # only its parts want quotes, or it has some
    quoted = f"{key}=" + ",".join(f'"{each}"' for each in value.split(","))
    try:
        parser.parse_override(quoted)
    except HydraException:
        return rule
    return f"special characters want quotes that the shell leaves: {shlex.quote(quoted)}"


def without_sweeps(words: Sequence[str]) -> list[str]:
    """The words that hold one value: what the sweep's own settings can be composed from."""
    return [word for word, o in zip(words, parse(words), strict=True) if not o.is_sweep_override()]


def composed(words: Sequence[str], hydra: bool = False) -> DictConfig:
    """What Hydra makes of the words, with its own node if asked. ValueError with one line for a mistake in them."""
    try:
        return compose(CONFIG_NAME, overrides=list(words), return_hydra_config=hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, words)) from None
    except ValueError:  # Hydra's own, for a group set to null
        for group, _, choice in (word.partition("=") for word in words):
            if group in config_groups() and choice in ("null", ""):
                known = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
                raise ValueError(f"{group}={choice} chooses nothing; known: {', '.join(known)}") from None
        raise


class Combinations:
    """The configurations of a sweep's combinations, one after the other.

    Hydra reads and merges all files for each, in 0.15 s, and puts the values of keys in at the end. Here the files are
    merged once for all combinations that differ in such values alone, which go into copies in the same way.
    """

    def __init__(self) -> None:
        self._merged: dict[tuple[str, ...], DictConfig] = {}

    def composed(self, words: Sequence[str]) -> DictConfig:
        """As `composed(words)`, and with its errors."""
        overrides = parse(words)
        values = [_is_value(override, overrides) for override in overrides]
        first = tuple(itertools.compress(words, map(operator.not_, values)))
        if first not in self._merged:
            self._merged[first] = composed(first)
        config = copy.deepcopy(self._merged[first])
        try:
            for override in itertools.compress(overrides, values):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return composed(words)  # for its error
        return config


def _is_value(override: Override, among: Sequence[Override]) -> bool:
    """Whether it sets one value of a key that is there, and no other word has to do with the key."""
    key = override.key_or_group
    plain = override.type == OverrideType.CHANGE and not isinstance(override.value(), list | dict)
    choice = "/" in key or override.package is not None or key in config_groups()
    if not plain or choice or key.startswith("hydra."):
        return False
    others = [other.key_or_group for other in among if other is not override]
    return not any(f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.") for other in others)
