"""`bnbench train --help` and `bnbench plan --help`: the groups of conf/ with their meanings, without Hydra or torch."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from bnbench import catalog
from bnbench.folders import config_folder

SHOWN = ("model", "norm", "data", "optim", "schedule", "recipe", "measure", "trainer", "logger", "experiment")


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
        choices = [(f"{group}={c}", c, meaning) for c, meaning in _choices(folder / group)]
        choices = [known for known in choices if known[1] not in catalog.MODELS]
        width = max((24, *(len(word) for word, _, _ in choices)))
        for word, choice, meaning in choices:
            mark = "*" if default == choice else " "
            lines.append(f"   {mark}{word:{width}} {meaning}")
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


def plan_help() -> str:
    return """\
usage: bnbench plan [-m] [--json] [--probe] [GROUP=CHOICE ...] [KEY=VALUE ...]

What `bnbench train` would do with the same words (bnbench train --help lists them): the cells and runs, those that
are finished already, the combinations that are invalid, each with its reason, the time, memory and disk by earlier
records beside the output folder. Starts nothing and writes nothing. Exit code: 0, or 2 if anything is invalid.

    --probe     train a few steps of each cell that no earlier record is of (some 10 s each), and tell by them;
                leaves nothing either
    --json      the same as one JSON object

Examples:
    bnbench plan -m experiment=quickstart
    bnbench plan --probe -m experiment=quickstart
    bnbench plan -m norm=bn,gn norm.batch_size=2,4,24 seed=0,1,2 name=my-study"""


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
        "optim": {name: choice.summary for name, choice in catalog.OPTIMIZERS.items()},
        "schedule": {name: choice.summary for name, choice in catalog.SCHEDULES.items()},
    }
    known = described.get(folder.name, {})
    order = [*known]
    names = sorted(  # experiments have folders of their own
        (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")),
        key=lambda name: (order.index(name) if name in known else len(order), name.count("/"), name),
    )
    return [(name, known.get(name) or _first_comment(folder / f"{name}.yaml")) for name in names]


def _first_comment(path: Path) -> str:
    """The first sentence of what a file says of itself, up to its next heading (`Run:`)."""
    said: list[str] = []
    for line in path.read_text().splitlines():
        text = line.lstrip("# ")
        if not line.startswith("#") or (said and re.match(r"[A-Z]\w+:", text)):
            break
        if "@package" not in line:
            said.append(text)
    sentences = re.split(r"(?<=\.)(?<!et al\.) ", " ".join(said).removeprefix("Shows:").strip())
    return sentences[0].removesuffix(".")
