"""Where a result comes from, as far as can be told without torch."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("bnbench", "torch", "torchvision", "lightning", "hydra-core", "wandb", "numpy", "scikit-learn")


def note_code() -> None:
    """Look at the code now, for all the records that this process and those forked from it write.

    Call it where the code is imported: later the files may be another version.
    """
    code_digest()
    own_git()


def provenance() -> dict[str, Any]:
    """Commit, digest of the code that trains, package versions, host and time."""
    return {
        "git": own_git(),
        "code": code_digest(),
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


FROZEN = "frozen.json"  # in a copy of the package: the state of the checkout that it was made from
# From the repository's root; untracked files there are code too.
WHAT_RUNS = (":/bnbench", ":/conf", ":/hydra_plugins", ":/pyproject.toml")


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the code, and whether what runs differs from it (a log beside it is none); nulls where git does
    not say, as outside a checkout."""
    package = Path(__file__).parent
    if folder.is_relative_to(package) and (package / FROZEN).exists():
        found: dict[str, Any] = json.loads((package / FROZEN).read_text())
        return found

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
    changed = git("status", "--porcelain", "--", *WHAT_RUNS)
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


WHAT_TRAINS = ("config", "data", "models", "norms", "training", "catalog.py", "span.py")


@functools.cache
def code_digest() -> str:
    """What tells the code that trains apart from another version of it, committed or not."""
    root, state = Path(__file__).parent, hashlib.sha256()
    for name in WHAT_TRAINS:
        for path in sorted([root / name] if name.endswith(".py") else (root / name).rglob("*.py")):
            state.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return state.hexdigest()[:16]


def other_code(came_from: Mapping[str, Any]) -> str | None:
    """What to call the code behind a record's provenance, where it is not the code that trains here; None if it is.

    Early records have no digest of it: their commit tells, where nothing was changed since.
    """
    git: Mapping[str, Any] = came_from.get("git") or {}
    commit, dirty, code = git.get("commit"), git.get("dirty"), came_from.get("code")
    if code == code_digest() or (code is None and commit and {"commit": commit, "dirty": False} == own_git()):
        return None
    if commit:
        return f"commit {commit[:7]}" + (" with changes" if dirty else "")
    version = (came_from.get("versions") or {}).get("bnbench")
    return f"bnbench {version}" if version else "unknown code"


@functools.cache
def own_git() -> dict[str, Any]:
    """`git_state` of bnbench itself, as it was when first asked for in this process."""
    return git_state(Path(__file__).parent)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
