"""Kept results of one theme side by side, and what has changed beyond both intervals. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from bnbench import benchmarks

from . import older
from .figures import Figure

GPU_CHECK, GPU_CHECK_THEME = "scripts/gpu_check", "gpu-check"
SIZES = ("B", "MB", "GB", "inputs")  # units of which more is larger, not slower


@dataclass(frozen=True)
class Kept:
    """A results file: `theme` with its variant, and what it takes to judge its figures."""

    path: Path
    theme: str
    command: str
    commit: str
    date: str
    hardware: str
    figures: list[Figure]

    def __str__(self) -> str:
        return f"{self.path}: commit {self.commit}, {self.date}, {self.hardware}, `{self.command}`"


def read(paths: Sequence[Path]) -> tuple[list[Kept], list[str]]:
    """The results of files, and of folders' .json files by date; and a line for each file that is left out.

    Raises ValueError for a path that is not there, and where nothing is left to show.
    """
    kept, left_out = [], []
    for path in dict.fromkeys(paths):
        if not path.exists():
            raise ValueError(f"{path} is not there: name files that `bnbench bench THEME --out` kept")
        found = []
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            try:
                found.append(_read(file))
            except ValueError as error:
                left_out.append(f"{file} is left out: {error}")
        kept += sorted(found, key=lambda each: each.date)
    if not kept:
        why = "; ".join(left_out) or f"{', '.join(map(str, paths))}: no .json files"
        raise ValueError(f"nothing to compare, give files that `bnbench bench THEME --out` kept: {why}")
    return kept, left_out


def table(kept: Iterable[Kept], left_out: Sequence[str]) -> str:
    """By theme: its files, lettered, and a row for each figure with a column for each file."""
    by_theme: dict[str, list[Kept]] = {}
    for each in kept:
        by_theme.setdefault(each.theme, []).append(each)
    blocks = ["\n".join(_block(theme, files)) for theme, files in by_theme.items()]
    return "\n\n".join(blocks + (["\n".join(left_out)] if left_out else []))


def change(before: Figure | None, after: Figure | None, same_hardware: bool) -> str:
    """`faster`, `slower` (of sizes `smaller`, `larger`) where the intervals lie apart, else why not."""
    if before is None or after is None:
        return ""
    if before.unit != after.unit or before.better != after.better:
        return "of another unit"
    if not same_hardware and before.unit not in ("x", "inputs"):
        return "on other hardware"  # seconds compare on one machine only
    if before.low is None or after.low is None:
        return "without an interval"
    if after.lowest > before.highest:
        grew = True
    elif after.highest < before.lowest:
        grew = False
    else:
        return "within noise"
    if after.unit in SIZES:
        return "larger" if grew else "smaller"
    return "faster" if grew == (after.better == "higher") else "slower"


def _block(theme: str, files: Sequence[Kept]) -> list[str]:
    letters = [ascii_uppercase[n] if n < len(ascii_uppercase) else str(n + 1) for n in range(len(files))]
    lines = [theme, *(f"  {letter}  {file}" for letter, file in zip(letters, files, strict=True))]
    if len(files) == 1:
        lines.append("  one result of this theme: nothing to compare it with")
    named = [{figure.name: figure for figure in file.figures} for file in files]
    names = dict.fromkeys(name for figures in named for name in figures)
    rows = [["", *letters]]
    for name in names:
        first = named[0].get(name)
        cells = [name]
        for number, (file, figures) in enumerate(zip(files, named, strict=True)):
            figure, same = figures.get(name), file.hardware == files[0].hardware
            parts = [] if figure is None else [f"{figure.number} {figure.unit}", figure.aim]
            parts += [change(first, figure, same)] if number else []
            cells.append(", ".join(filter(None, parts)) or "–")
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        lines.append("  " + "   ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)))
    return [line.rstrip() for line in lines]


def _read(path: Path) -> Kept:
    """Raises ValueError, in words that follow the file's name, for one that `bnbench bench` did not keep."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"broken JSON ({error})") from None
    command = content.get("command") if isinstance(content, dict) else None
    if not isinstance(command, str) or not command.startswith(("bnbench ", GPU_CHECK)):
        raise ValueError("no result of `bnbench bench`")
    _, verb, theme, *_ = [*command.split(), "", ""]
    if command.startswith(GPU_CHECK):
        theme = GPU_CHECK_THEME
    elif verb != "bench" or theme not in benchmarks.THEMES:
        raise ValueError(f"`{command}` is no theme of `bnbench bench`")
    try:
        came_from = _provenance(content)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("no provenance: not kept by `bnbench bench --out`") from None
    return Kept(path, "-".join(filter(None, [theme, _variant(path, theme, content)])), command, *came_from,
                _figures(theme, content))  # fmt: skip


def _provenance(content: dict[str, Any]) -> tuple[str, str, str]:
    """Commit, date and hardware."""
    came_from = content["provenance"]
    git, host = came_from["git"], came_from["host"]
    commit = "unknown" if not git else str(git["commit"])[:7] + (" and changes" if git["dirty"] else "")
    hardware = str(content.get("gpu") or f"{host['cpu']} {host['cores']} cores")
    return commit, str(came_from["written"])[:16].replace("T", " "), hardware


def _variant(path: Path, theme: str, content: dict[str, Any]) -> str:
    """What the settings are beside the default; before results held it, it was in the file's name alone."""
    if "variant" in content:
        return str(content["variant"])
    return path.name.partition("_")[0].removeprefix(theme).removeprefix("-") if "_" in path.name else ""


def _figures(theme: str, content: dict[str, Any]) -> list[Figure]:
    rows = content.get("figures")
    if rows is None:
        return older.figures(theme, content)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its figures are not a list of figures")
    return [Figure.from_json(row) for row in rows]
