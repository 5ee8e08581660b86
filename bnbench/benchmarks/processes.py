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

# Runs a command line of bnbench and leaves its own VmHWM and its largest child's peak, summed, in kB in a file. Its own
# is not ru_maxrss: that begins at what the process held that started this one, which for its children is little.
_PROBE = """
import pathlib, resource, sys
from bnbench.cli import main
target, *words = sys.argv[1:]
code = main(words)
status = pathlib.Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
pathlib.Path(target).write_text(str(peak + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
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
    """`bnbench` with these words, and the most bytes that it and its largest child had resident. Linux only."""
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder) / "peak"
        finished = run([sys.executable, "-c", _PROBE, str(peak), *words])
        return finished, 1024 * int(peak.read_text())
