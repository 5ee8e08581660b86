"""Whole processes, as a user starts them: their seconds, processor time and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Runs a command line of bnbench and leaves its own VmHWM, in kB, in a file. Not ru_maxrss: that begins at what
# the process held that started this one.
_PROBE = """
import pathlib, sys
from bnbench.cli import main
target, *words = sys.argv[1:]
code = main(words)
status = pathlib.Path("/proc/self/status").read_text()
pathlib.Path(target).write_text(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Finished:
    """`seconds` from start to end, `cpu_seconds` of the process and its children, what it said on stderr."""

    seconds: float
    cpu_seconds: float
    said: str


def run(command: Sequence[str]) -> Finished:
    """Wait for a command to end. RuntimeError, with what it said, unless it ends with 0."""
    # Into a file: a pipe that nobody reads would stop a process that says much.
    with tempfile.TemporaryFile() as errors:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone, unlike RUSAGE_CHILDREN
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said}")
    return Finished(seconds, usage.ru_utime + usage.ru_stime, said)


def bnbench(*words: str) -> list[str]:
    """The command that `bnbench` with these words is."""
    return [sys.executable, "-m", "bnbench.cli", *words]


def run_with_peak(*words: str) -> tuple[Finished, int]:
    """`bnbench` with these words, and the most bytes that were resident. Linux only."""
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder) / "peak"
        finished = run([sys.executable, "-c", _PROBE, str(peak), *words])
        return finished, 1024 * int(peak.read_text())
