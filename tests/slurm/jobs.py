"""A SLURM cluster as its users have it: submit, look, signal; and as nobody wants it: a node dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import bnbench, clean_environment

CLUSTER = str(Path(__file__).with_name("cluster"))
ROOT = Path(__file__).parents[2]
SECONDS = 300  # for a job with its starts on two busy cores: a bound on a hang
# A network that dawdles: SLOW is the seconds of a step. It changes no number, and so makes no other run.
SLOW_NET = """
import os, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, fails=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
        self.fails = fails

    def forward(self, images):
        if self.training and torch.is_grad_enabled():  # in steps alone: the setup has a look at it, too
            time.sleep(float(os.environ.get("SLOW", "0")))
        if self.training and self.fails:
            raise RuntimeError("this network fails")
        return self.layers(images)
"""
STEPS = 4 * 25  # of a run: 25 epochs of 256 images by 64
SLOW_RUN = (
    "model=custom", "model.name=slow_net.Net", "data.max_train=256", "data.max_test=64", "epochs=25",
    "optim.warmup_epochs=0", "logger=none", "trainer.log_every=1", "trainer.checkpoint_minutes=0",
    "trainer.accelerator=cpu", "trainer.threads=1", "measure=none",
)  # fmt: skip
TINY_RUN = (
    "epochs=1", "data.max_train=128", "data.max_test=64", "optim.warmup_epochs=0", "logger=none", "measure=none",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=1",
)  # fmt: skip
NO_GPU = ("--gpus-per-node=0", "--cpus-per-task=1")


class Slurm:
    """The session's cluster, seen from a test's workplace."""

    def __init__(self, folder: Path, control: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        self.folder, self.control = folder, control
        self.place = Path()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def begin(self, place: Path) -> None:
        self.place = place
        (place / "slow_net.py").write_text(SLOW_NET)

    def clear(self) -> None:
        """End all jobs, and have both nodes back."""
        self.call("scancel", "--full", "--user", str(os.getuid()))
        for number in (1, 2):
            if not _alive(self.folder / f"slurmd.127.0.0.{number}.pid"):
                assert self.control("node", str(number)).returncode == 0
        until(lambda: not self.call("squeue", "-h", "-t", "all", "-o", "%T").count("ING"), 120)
        until(lambda: self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2, 120)

    def call(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            words,
            cwd=self.place,
            env=clean_environment(**self.environment | environment),
            capture_output=True,
            text=True,
            timeout=60,
        )
        may_fail = words[0] in ("scancel", "squeue") or words[-2] == "step"
        assert done.returncode == 0 or may_fail, (words, done.stderr)
        return done.stdout

    def bnbench(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return bnbench(*words, cwd=self.place, **self.environment | environment)

    def sbatch(self, *words: str, **environment: str) -> str:
        """The number of the job."""
        found = re.search(r"Submitted batch job (\d+)", self.call("sbatch", *words, **environment))
        assert found
        return found[1]

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of it: JobState, Restarts, ExitCode and more."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "-o", "show", "job", number)))

    def wait(self, number: str, *states: str, seconds: float = SECONDS) -> dict[str, str]:
        """Until the job is in one of the states; it must not end in another."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def there() -> bool:
            state = self.job(number)["JobState"]
            assert state in states or state not in ends, self.said(number)
            return state in states

        until(there, seconds, lambda: self.said(number))
        return self.job(number)

    def said(self, number: str) -> str:
        """All logs of a job, for a failed test."""
        logs = [
            *self.place.glob(f"*{number}*.out"),
            *self.place.glob(f"runs/*/.submissions/*/*/*{number}*log.out"),
        ]
        return "\n".join([str(self.job(number)), *(f"{log.name}:\n{log.read_text()}" for log in logs)])

    def kill_node(self, number: int) -> None:
        """As a power cut does: the node's daemon, its step daemons and all that they have started."""
        name = f"127.0.0.{number}"
        daemon = int((self.folder / f"slurmd.{name}.pid").read_text())
        (self.folder / f"slurmd.{name}.pid").unlink()
        table = [
            line.split(None, 2)
            for line in subprocess.run(
                ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
            ).stdout.splitlines()
        ]
        log = self.folder / "log" / f"slurmd.{name}.log"
        steps = [
            int(pid) for pid, _, args in table if args.startswith("slurmstepd") and _has_open(int(pid), log)
        ]
        doomed, waiting = [], [daemon, *steps]
        while waiting:
            doomed.append(waiting.pop())
            waiting += [int(pid) for pid, parent, _ in table if int(parent) == doomed[-1]]
        for pid in dict.fromkeys(doomed):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(there: Callable[[], Any], seconds: float, told: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"not within {seconds:g} s: {told()}"
        time.sleep(0.3)


def _alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _has_open(pid: int, log: Path) -> bool:
    """Whether a process has a node's log open: all nodes, and other clusters', run on one host."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if each.readlink() == log:
                return True
    return False
