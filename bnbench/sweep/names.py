"""What tells runs of one name apart: a name holds model, norm, NBS and seed, and a sweep may vary more. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnbench.config import RunConfig
from bnbench.fairness import called
from bnbench.records import cell_of, flatten


def short(run: RunConfig) -> str:
    """A run's name without its seed."""
    return run.run_name.removesuffix(f"-s{run.seed}")


def apart(runs: Sequence[RunConfig]) -> dict[Path, list[str]]:
    """By folder, the settings (`lr=0.1`) in which a run differs from others whose name is the same but for the seed."""
    named: dict[str, list[RunConfig]] = {}
    for run in runs:
        named.setdefault(short(run), []).append(run)
    found: dict[Path, list[str]] = {}
    for own in named.values():
        flat = [flatten(cell_of(run.identity())) for run in own]
        first = flat[0]
        keys = [
            key
            for key in first
            if all(key in each for each in flat) and any(each[key] != first[key] for each in flat)
        ]
        for run, settings in zip(own, flat, strict=True):
            found[run.folder] = [f"{called(key)}={settings[key]}" for key in keys]
    return found
