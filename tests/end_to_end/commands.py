"""bnbench as a user calls it, and what it leaves on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnbench import cli
from bnbench.records import Record, find_records, read_record

BNBENCH = str(Path(sys.executable).with_name("bnbench"))
NO_LOGGER = ("logger=none",)
TINY = ("data.max_train=128", "data.max_test=64", "epochs=1", "optim.warmup_epochs=0")  # two steps of 64
SECONDS = 270  # cold starts on two busy cores, with room: a bound on a hang, no measure of speed


def train(*words: str) -> int:
    """`bnbench train` in this process: its ranks come from a server that later calls share."""
    return cli.main(["train", *words])


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without the traces of another world, scheduler or W&B mode."""
    foreign = ("SLURM_", "WANDB_", "TORCHELASTIC_", "MASTER_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        kept.pop(key, None)
    return kept | extra


def bnbench(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The console command in a process of its own."""
    return run([BNBENCH, *words], cwd=cwd, **environment)


def start(command: Sequence[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A command in a session of its own, so that all it starts can be found and ended."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    # A shell starts its background jobs deaf to Ctrl-C, and children inherit that: CI may be such a job.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Wait for the command to end; what is late is killed with all it started, and fails the test."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(command: Sequence[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return finish(start(command, cwd, **environment))


def records(folder: Path) -> list[Record]:
    return [read_record(path) for path in find_records(folder)]


def the_record(folder: Path, **wanted: Any) -> tuple[Path, Record]:
    """The run folder and record of the one run whose identity has these values."""
    found = [
        (path.parent, record)
        for path in find_records(folder)
        if all((record := read_record(path)).identity[key] == value for key, value in wanted.items())
    ]
    assert len(found) == 1, f"{len(found)} records in {folder} have {wanted}"
    return found[0]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def folders(root: Path, name: str) -> list[Path]:
    """Every folder of that name below one in which things come and go."""
    return [Path(folder, name) for folder, within, _ in os.walk(root) if name in within]


def record_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every record."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in find_records(folder)}


def outcomes(folder: Path) -> dict[str, Any]:
    """What each run came to, by its identity; times, hosts and attempts aside."""
    found = records(folder)
    return {r.id: (r.status, r.metrics, r.health, r.error, r.norm_swap, r.config["seed"]) for r in found}
