"""How long the verbs' --help take as whole processes, beside a bare Python and one that imports torch.

A round starts each command once, in another order each time. What is imported is told by `python -X importtime`, in
processes of their own that are not timed.
"""

from __future__ import annotations

import re
import statistics
import sys
from typing import Any

from .figures import Figure, figure_lines
from .processes import Finished, bnbench, run

HELPS = {
    "bnbench --help": ("--help",),
    "bnbench train --help": ("train", "--help"),
    "bnbench plan --help": ("plan", "--help"),
    "bnbench report --help": ("report", "--help"),
}
TARGETS = {"bnbench train --help": 1.5, "bnbench report --help": 1.0}  # wall seconds
BARE, TORCH = "python -c pass", 'python -c "import torch"'


def measure(rounds: int) -> dict[str, Any]:
    """Wall and processor seconds of each command by round, their figures, and which of them import torch."""
    if rounds < 1:
        raise ValueError(f"--rounds={rounds} must be at least 1")
    commands = {
        BARE: [sys.executable, "-c", "pass"],
        TORCH: [sys.executable, "-c", "import torch"],
        **{name: bnbench(*words) for name, words in HELPS.items()},
    }
    torch_in = [name for name in HELPS if "torch" in imported(commands[name])]
    if "torch" not in imported(commands[TORCH]):
        raise RuntimeError(f"{TORCH} is not seen to import torch: the probe tells nothing")
    found: dict[str, list[Finished]] = {name: [] for name in commands}
    for command in commands.values():
        run(command)  # files into the page cache, bytecode written
    names = list(commands)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(run(commands[name]))
    seconds = {name: [each.seconds for each in rows] for name, rows in found.items()}
    cpu = {name: [each.cpu_seconds for each in rows] for name, rows in found.items()}
    figures = []
    for name in HELPS:
        figures.append(Figure.of(name, seconds[name], unit="s", target=TARGETS.get(name)))
        figures.append(Figure.of(f"{name}, processor time", cpu[name], unit="s"))
        for other in (BARE, TORCH):
            ratios = [mine / its for mine, its in zip(seconds[name], seconds[other], strict=True)]
            figures.append(Figure.of(f"{name} / {other}", ratios))
    count = len(torch_in)
    figures.append(Figure("verbs' --help that import torch", count, count, count, "verbs", target=0))
    return {
        "rounds": rounds,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "import_torch": torch_in,
        "figures": [figure.to_json() for figure in figures],
    }


def table(result: dict[str, Any]) -> str:
    beside = ", ".join(
        f"{name}: {statistics.median(result['seconds'][name]):.3f} s" for name in (BARE, TORCH)
    )
    lines = [f"wall time of whole processes, {result['rounds']} rounds; {beside}"]
    lines += figure_lines(Figure.from_json(row) for row in result["figures"])
    if result["import_torch"]:
        lines.append(f"torch is imported by {', '.join(result['import_torch'])}")
    return "\n".join(lines)


def imported(command: list[str]) -> set[str]:
    """The modules that a Python command imports, by `-X importtime`."""
    python, *rest = command
    said = run([python, "-X", "importtime", *rest]).said
    return set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", said, re.MULTILINE))
