"""A SLURM of two nodes for the session, and a workplace for each test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.jobs import CLUSTER, Slurm

REQUIRED = "BNBENCH_REQUIRE_SLURM"  # in CI: no cluster is a failure there
SECONDS = 300  # to install its packages


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="bnslurm"))  # short: a socket lies in it
    environment = os.environ | {"BNBENCH_SLURM": str(folder), "BNBENCH_SLURM_PORT": str(_three_free_ports())}

    def control(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CLUSTER, *words], env=environment, capture_output=True, text=True, timeout=SECONDS
        )

    slurm = Slurm(folder, control)
    try:
        for step in ("install", "start"):
            done = control(step)
            if done.returncode and os.environ.get(REQUIRED):
                pytest.fail(f"no cluster, and {REQUIRED} is set: {done.stderr}")
            if done.returncode:
                pytest.skip(f"no SLURM here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        yield slurm
    finally:
        control("stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(cluster: Slurm, tmp_path: Path) -> Iterator[Slurm]:
    """The cluster, empty before and after."""
    cluster.begin(tmp_path)
    yield cluster
    cluster.clear()


def _three_free_ports() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(16917 + 300 * worker, 17217 + 300 * worker, 3):  # two that look at once find others
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            try:
                for port, each in enumerate((a, b, c), first):
                    each.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no three free ports")
