"""`bnbench train --help`: the groups of conf/ with their meanings, without Hydra or torch."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from bnbench import catalog
from bnbench.folders import config_folder

SHOWN = ("model", "norm", "data", "optim", "trainer", "logger", "experiment")


def train_help() -> str:
    folder = config_folder()
    lines = [
        "usage: bnbench train [GROUP=CHOICE ...] [KEY=VALUE ...]        one run",
        "       bnbench train -m KEY=VALUE,VALUE,... [...]              a sweep: every combination",
        "",
        "groups (defaults marked *):",
    ]
    defaults = dict(re.findall(r"^  - (\w+): (\w+)", (folder / "config.yaml").read_text(), re.MULTILINE))
    for group in SHOWN:
        lines.append(f"  {group}: {catalog.GROUPS[group]}" + (", model=NAME" if group == "model" else ""))
        default = defaults.get(group)
        if group == "model":
            lines += _models(default)
        for choice, meaning in _choices(folder / group):
            if choice not in catalog.MODELS:
                mark = "*" if default == choice else " "
                lines.append(f"   {mark}{f'{group}={choice}':24} {meaning}")
    lines += ["", "keys:"]
    lines += [f"    {key:16} {meaning}" for key, meaning in catalog.KEYS.items()]
    lines += [
        "",
        "Examples:",
        "    bnbench train norm=gn model=resnet20 epochs=10",
        "    bnbench train -m norm=bn norm.batch_size=2,4,16 seed=0,1,2 name=my-study",
        "    bnbench train --cfg job             print the whole configuration and train nothing",
        "    torchrun --nproc-per-node 4 -m bnbench.train trainer.devices=4",
        "",
        "Hydra's own options (--cfg, --info, --config-dir, tab completion): bnbench train --hydra-help",
    ]
    return "\n".join(lines)


def _models(default: str | None) -> list[str]:
    """The networks by family, a line for what a family is and one for its names: forty lines say less."""
    lines = []
    for family, meaning in catalog.MODEL_FAMILIES.items():
        names = [name for name, info in catalog.MODELS.items() if info.family == family]
        lines.append(f"    {meaning}:")
        listed = " ".join(f"*{name}" if name == default else name for name in names)
        lines += textwrap.wrap(listed, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _choices(folder: Path) -> list[tuple[str, str]]:
    """Each file of a group with its one-liner: the catalog's, else the file's first comment."""
    described: dict[str, dict[str, str]] = {
        "norm": {name: info.summary for name, info in catalog.NORMS.items()},
        "model": {name: info.summary for name, info in catalog.MODELS.items()},
        "data": catalog.DATASETS,
    }
    known = described.get(folder.name, {})
    order = [*known]
    names = sorted(
        (path.stem for path in folder.glob("*.yaml")),
        key=lambda name: (order.index(name) if name in known else len(order), name),
    )
    return [(name, known.get(name) or _first_comment(folder / f"{name}.yaml")) for name in names]


def _first_comment(path: Path) -> str:
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").removeprefix("Shows:").strip()
    return ""
