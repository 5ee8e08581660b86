"""`bnbench report` as a whole process over folders of made-up records: seconds, peak memory, and growth.

A round reports every size once, smallest first, each into a new folder, so that nothing comes from a cache.
`growth`, round by round, is what a further record costs in processor time between the two largest sizes against between
the smaller ones: 1 where time is linear, whatever the start costs.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import Figure, figure_lines
from .many_records import write_many
from .processes import run_with_peak

TARGET_RECORDS = 10_000  # where the next two hold
SECONDS_TARGET = 10.0
MEGABYTES_TARGET = 1000.0
GROWTH_TARGET = 1.2


def measure(sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds, processor seconds and peak bytes by size and round, and the figures of them."""
    if rounds < 1:
        raise ValueError(f"--rounds={rounds} must be at least 1")
    shown = ",".join(map(str, sizes))
    if not sizes or min(sizes) < 1 or any(more <= few for few, more in itertools.pairwise(sizes)):
        raise ValueError(f"--records={shown} must be numbers of at least 1, each larger than the one before")
    if not Path("/proc/self/status").exists():
        raise ValueError("bench report reads peak memory from /proc, which is not here: run it on Linux")
    rows: dict[int, dict[str, list[float]]] = {
        size: {"seconds": [], "cpu_seconds": [], "peak_bytes": []} for size in sizes
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for size in sizes:
            write_many(root / str(size), size)
        run_with_peak(
            "report", str(root / str(sizes[0])), "--out", str(root / "first")
        )  # bytecode, libraries
        for number in range(rounds):
            for size in sizes:
                out = root / f"report-{size}-{number}"
                finished, peak = run_with_peak("report", str(root / str(size)), "--out", str(out))
                rows[size]["seconds"].append(finished.seconds)
                rows[size]["cpu_seconds"].append(finished.cpu_seconds)
                rows[size]["peak_bytes"].append(peak)
    by_size = {str(size): row for size, row in rows.items()}
    return {"rounds": rounds, "by_size": by_size, "figures": [f.to_json() for f in figures(rows)]}


def figures(rows: Mapping[int, Mapping[str, Sequence[float]]]) -> list[Figure]:
    """By size: seconds, processor seconds, those of 1,000 records, peak memory; with three sizes or more the growth."""
    found = []
    for size, row in rows.items():
        seconds, memory = (SECONDS_TARGET, MEGABYTES_TARGET) if size == TARGET_RECORDS else (None, None)
        cpu, what = row["cpu_seconds"], f"{size:,} records"
        found += [
            Figure.of(f"{what}: time", row["seconds"], unit="s", target=seconds),
            Figure.of(f"{what}: processor time", cpu, unit="s"),
            Figure.of(f"{what}: that of 1,000 of them", [1000 * each / size for each in cpu], unit="s"),
            Figure.of(
                f"{what}: peak memory", [each / 1e6 for each in row["peak_bytes"]], unit="MB", target=memory
            ),
        ]
    if len(rows) >= 3:
        first, *_, before, last = rows
        ratios = [
            ((c - b) / (last - before)) / ((b - a) / (before - first))
            for a, b, c in zip(*(rows[size]["cpu_seconds"] for size in (first, before, last)), strict=True)
        ]
        what = f"growth: a further record, {before:,} to {last:,} / {first:,} to {before:,}"
        found.append(Figure.of(what, ratios, target=GROWTH_TARGET))
    return found


def table(result: dict[str, Any]) -> str:
    lines = [f"bnbench report, {result['rounds']} rounds"]
    return "\n".join(lines + figure_lines(Figure.from_json(row) for row in result["figures"]))
