"""Benchmark results as files: named by theme, hardware and date, with what it takes to repeat them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnbench.provenance import provenance
from bnbench.records import write_atomic


def keep(
    folder: Path, theme: str, argv: Sequence[str], result: dict[str, Any], program: str = "bnbench bench"
) -> Path:
    """Write the result with its command and provenance; a second one of a day replaces the first.

    Its name has the theme with the result's `variant`, where there is one, and the hardware: the result's `gpu`,
    where it has one, else the host's CPU.
    """
    came_from = provenance()
    host = came_from["host"]
    device = result.get("gpu") or f"{host['cpu']} {host['cores']} cores"
    hardware = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    name = "-".join(filter(None, [theme, result.get("variant")]))
    path = folder / f"{name}_{hardware}_{datetime.date.today():%Y-%m-%d}.json"
    folder.mkdir(parents=True, exist_ok=True)
    # Where a user keeps results is no part of how to repeat them.
    words = [
        word
        for n, word in enumerate(argv)
        if "--out" not in (word.partition("=")[0], argv[n - 1] if n else "")
    ]
    command = " ".join([program, *words])
    content = {"theme": theme, "command": command, **result, "provenance": came_from}
    write_atomic(path, json.dumps(content, indent=1).encode() + b"\n")
    return path
