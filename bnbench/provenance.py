"""Where a result comes from, as far as can be told without torch."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("bnbench", "torch", "torchvision", "lightning", "hydra-core", "wandb", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Commit, package versions, host and time."""
    return {
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **versions()},
        "host": {
            "name": socket.gethostname(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
        },
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# From the repository's root; untracked files there are code too.
WHAT_RUNS = (":/bnbench", ":/conf", ":/hydra_plugins", ":/pyproject.toml")


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the code, and whether what runs differs from it (a log beside it is none); nulls elsewhere."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # A wheel inside somebody's repository is not that repository's code.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *WHAT_RUNS))}


WHAT_TRAINS = ("config", "data", "models", "norms", "training", "span.py")


@functools.cache
def code_digest() -> str:
    """What tells the code that trains apart from another version of it, committed or not."""
    root, state = Path(__file__).parent, hashlib.sha256()
    for name in WHAT_TRAINS:
        for path in sorted([root / name] if name.endswith(".py") else (root / name).rglob("*.py")):
            state.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return state.hexdigest()[:16]


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
