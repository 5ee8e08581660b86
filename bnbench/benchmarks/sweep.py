"""A sweep on one warm world against one process group per run: what a further run costs beside its training.

Whole commands, `bnbench train -m` as a user calls it, W&B (offline) and records included, alternate in rounds: a sweep
of one run, which is what each run costs where nothing stays warm, one of `runs` runs on one world, and the same
with a new world for each run. A further run's seconds are (sweep of n - sweep of one) / (n - 1): start, imports,
and report cancel out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnbench.records import find_records, read_record

from .figures import Figure

TINY = (
    "data.max_train=128", "data.max_test=64", "model.width=4", "epochs=1", "optim.warmup_epochs=0",
    "trainer.accelerator=cpu", "trainer.devices=2", "trainer.threads=1", "logger=wandb", "logger.mode=offline",
    "norm=bn", "norm.batch_size=8",
)  # fmt: skip
TARGET = 0.5  # seconds of a further run on 2 CPU ranks beside its training


def measure(rounds: int, runs: int) -> dict[str, Any]:
    """Seconds by contender and round, and what follows from them."""
    contenders: dict[str, Callable[[], tuple[float, float]]] = {
        "cold": lambda: _sweep(1),
        "pool": lambda: _sweep(runs),
        "fresh_world": lambda: _sweep(runs, "hydra.launcher.fresh_world=true"),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, sweep in contenders.items():
            found[name].append(sweep())
    walls = {name: [wall for wall, _ in rows] for name, rows in found.items()}
    training = statistics.median(seconds for rows in found.values() for _, seconds in rows)
    result: dict[str, Any] = {"rounds": rounds, "runs": runs, "walls": walls, "training_seconds": training}
    figures = result["figures"] = []
    for name in ("pool", "fresh_world"):
        further = [(n - one) / (runs - 1) for n, one in zip(walls[name], walls["cold"], strict=True)]
        extra = [seconds - training for seconds in further]
        ratios = [n / runs / one for n, one in zip(walls[name], walls["cold"], strict=True)]
        result[name] = {
            "extra_seconds": _spread(extra),
            "ratio_to_cold": _spread(ratios),
        }
        what, target = f"{name}: a further run beside its training", TARGET if name == "pool" else None
        figures.append(Figure.of(what, extra, unit="s", target=target).to_json())
    return result


def table(result: dict[str, Any]) -> str:
    cold, runs = statistics.median(result["walls"]["cold"]), result["runs"]
    lines = [
        f"a sweep of one run: {cold:.1f} s, of which training {result['training_seconds']:.2f} s",
        f"{'':12} {'extra s of a further run':26} {f'time per run of {runs} / alone':28} median [least, most]",
    ]
    for name, row in zip(("pool", "fresh_world"), result["figures"], strict=True):
        extra, ratio = result[name]["extra_seconds"], result[name]["ratio_to_cold"]
        aim = Figure.from_json(row).aim
        lines.append(
            f"{name:12} {_text(extra, 2):26} {_text(ratio, 3):28}  {aim and f'extra {aim}'}".rstrip()
        )
    return "\n".join(lines)


def _sweep(runs: int, *words: str) -> tuple[float, float]:
    """Seconds of the whole command, and the median run's training."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(str(seed) for seed in range(runs))
        command = [
            sys.executable,
            "-m",
            "bnbench.train",
            "-m",
            *TINY,
            *words,
            f"seed={seeds}",
            f"dir={folder}/s",
        ]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        begun = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - begun
        records = [read_record(path) for path in find_records(Path(folder))]
        if done.returncode or len(records) != runs:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
        return wall, statistics.median(record.timings["fit_seconds"] for record in records)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _text(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} [{spread['least']:.{digits}f}, {spread['most']:.{digits}f}]"
