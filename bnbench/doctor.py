"""`bnbench doctor`: what this machine can do, and what to do about what is missing.

Each check answers by itself and never raises: a machine that cannot import torch is the one that needs
this page most. `missing` means that training cannot run here; `note` tells of something optional.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnbench import wandb_run

State = Literal["ok", "note", "missing"]
TRAIN = "pip install '.[train]' in bnbench's checkout"
TOGETHER = (
    "a CPU-only torch does not go with the ordinary index's torchvision; reinstall both together from the "
    "ordinary index (that torch runs on CPU too): "
)


@dataclass(frozen=True)
class Check:
    name: str
    state: State
    detail: str
    remedy: str = ""


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    detail = f"{platform.python_version()}, {sys.executable}"
    if version in ((3, 11), (3, 12)):
        return Check("python", "ok", detail)
    return Check("python", "missing", detail, "bnbench supports Python 3.11 and 3.12: make a new environment")


def _required(distribution: str) -> str:
    """The versions that bnbench asks for, as in `>=2.11`; empty when bnbench itself is not installed."""
    from packaging.requirements import Requirement

    try:
        requirements = map(Requirement, importlib.metadata.requires("bnbench") or ())
    except importlib.metadata.PackageNotFoundError:
        return ""
    return next((str(r.specifier) for r in requirements if r.name == distribution), "")


def check_package(distribution: str) -> Check:
    """By metadata alone: importing lightning and wandb would take seconds."""
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Check(distribution, "missing", "not installed", TRAIN)
    required = _required(distribution)
    if not SpecifierSet(required).contains(version, prereleases=True):
        return Check(distribution, "missing", f"{version}; bnbench needs {required}", TRAIN)
    return Check(distribution, "ok", version)


def _reinstall_together() -> str:
    packages = " ".join(f"'{name}{_required(name)}'" for name in ("torch", "torchvision"))
    if importlib.util.find_spec("pip"):
        return f"{TOGETHER}{sys.executable} -m pip install --force-reinstall {packages}"
    return f"{TOGETHER}uv pip install --python {sys.executable} --reinstall {packages}"


def check_import(name: str) -> Check:
    """A torch package that is installed must also import; the reason why not decides the remedy."""
    check = check_package(name)
    if check.state != "ok":
        return check
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken native library raises anything from OSError to RuntimeError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        detail = f"{check.detail} does not import: {reason}"
        if "torchvision::nms" in str(error) or name == "torchvision":
            return Check(name, "missing", detail, _reinstall_together())
        return Check(
            name, "missing", detail, f"reinstall it: {TRAIN.replace('install', 'install --force-reinstall')}"
        )
    return check


def check_cuda(torch: Any) -> Check:
    with warnings.catch_warnings(record=True) as caught:  # a driver that is too old only warns
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
        return Check("cuda", "ok", f"CUDA {torch.version.cuda}: {names}")
    if torch.version.cuda is None:
        reason = "this torch is built without CUDA"
    elif caught:
        reason = str(caught[0].message).splitlines()[0]
    else:
        reason = f"no GPU found (torch is built for CUDA {torch.version.cuda})"
    return Check(
        "cuda", "note", reason, "training runs on CPU; for a GPU: a CUDA torch and a driver that fits"
    )


def check_nccl(torch: Any) -> Check:
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        return Check("nccl", "ok", f"{'.'.join(map(str, torch.cuda.nccl.version()))} (ranks on GPUs)")
    return Check(
        "nccl", "note", "not in this torch", "several GPUs need a CUDA torch on Linux; CPU ranks use gloo"
    )


def check_gloo(torch: Any) -> Check:
    """Whether two CPU ranks can meet on this machine, without starting them."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        return Check("gloo", "missing", "not in this torch", f"CPU ranks need it; {_reinstall_together()}")
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
    except OSError as error:
        return Check(
            "gloo", "missing", f"no port on 127.0.0.1: {error}", "ranks meet there: bring up loopback"
        )
    return Check("gloo", "ok", "ranks can meet on 127.0.0.1")


def check_machine() -> Check:
    # Affinity, since a container or a SLURM job may own fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    detail = f"{cores} {'core' if cores == 1 else 'cores'}, {memory:.0f} GiB of memory"
    if cores == 1:
        return Check(
            "machine", "note", detail, "two CPU ranks would share one core: trainer.devices=1 is as fast"
        )
    return Check("machine", "ok", detail)


def check_slurm(environ: Mapping[str, str] = os.environ) -> Check:
    found = [tool for tool in ("sbatch", "srun") if shutil.which(tool)]
    if "SLURM_JOB_ID" in environ:
        return Check("slurm", "ok", f"inside job {environ['SLURM_JOB_ID']}")
    if len(found) == 2:
        return Check("slurm", "ok", "sbatch and srun found; not inside a job")
    return Check("slurm", "note", "no sbatch and srun on PATH", "only needed to run on a cluster")


def check_wandb_login(environ: Mapping[str, str] = os.environ) -> Check:
    mode = environ.get("WANDB_MODE", "offline")
    login = wandb_run.login(environ)
    detail = f"mode {mode}, " + (f"login by {login}" if login else "no login")
    if mode not in ("offline", "online", "disabled"):
        return Check("w&b", "missing", detail, "set WANDB_MODE to offline, online or disabled")
    if mode == "online" and not login:
        return Check("w&b", "missing", detail, "wandb login, or WANDB_MODE=offline")
    if not login:
        return Check("w&b", "ok", f"{detail} (none is needed offline)")
    return Check("w&b", "ok", detail if mode != "offline" else f"{detail}; WANDB_MODE=online would send runs")


def _write_error(folder: Path) -> str:
    """Why no file can be made in `folder`; tried, since root passes every permission bit."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"bnbench")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_runs(folder: Path | None = None) -> Check:
    """The folder that runs are written to, below the current one; it is not made here."""
    runs = (folder or Path.cwd()) / "runs"
    if runs.exists() and not runs.is_dir():
        return Check(
            "runs/", "missing", f"a file is in the way: {runs}", "move it, or train with dir=ANOTHER/FOLDER"
        )
    reason = _write_error(runs if runs.exists() else runs.parent)
    if reason:
        return Check("runs/", "missing", f"cannot write {runs}: {reason}", "train with dir=A/WRITABLE/FOLDER")
    free = shutil.disk_usage(runs.parent).free / 2**30
    return Check("runs/", "ok", f"{runs} can be written; {free:.0f} GiB free")


def check_temp() -> Check:
    try:
        folder = tempfile.gettempdir()  # tries to write
    except OSError as error:
        return Check("temp", "missing", str(error), "set TMPDIR to a folder that can be written")
    return Check("temp", "ok", f"{folder} can be written")


def checks() -> Iterator[Check]:
    yield check_python()
    yield check_import("torch")
    yield check_import("torchvision")
    for distribution in ("lightning", "hydra-core", "scikit-learn", "wandb"):
        yield check_package(distribution)
    yield check_machine()
    torch = sys.modules.get("torch")  # there if it imported above
    if torch is not None:
        yield from (check_cuda(torch), check_nccl(torch), check_gloo(torch))
    yield check_slurm()
    yield check_wandb_login()
    yield check_runs()
    yield check_temp()


def _print(found: list[Check], can_train: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: "[train]" is no style. Lines to copy are never folded.
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("check", "state", "detail"):
        table.add_column(column, overflow="fold")
    colour = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for check in found:
        table.add_row(check.name, Text(check.state, colour[check.state]), Text(check.detail))
    console.print(table)
    todo: dict[tuple[str, str], list[str]] = {}  # one remedy often serves several checks
    for check in found:
        if check.remedy:
            todo.setdefault((check.state, check.remedy), []).append(check.name)
    if todo:
        console.print("\nWhat to do:")
    for (state, remedy), names in sorted(todo.items(), key=lambda item: item[0][0] != "missing"):
        console.print(Text(f"  {', '.join(names)} ({state}): {remedy}"), soft_wrap=True)
    console.print("\nTraining can run here." if can_train else "\nTraining cannot run here yet.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bnbench doctor", description="What this machine can do, and what to do next."
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    options = parser.parse_args(argv)
    found = list(checks())
    can_train = all(check.state != "missing" for check in found)
    if options.json:
        print(
            json.dumps({"can_train": can_train, "checks": [dataclasses.asdict(c) for c in found]}, indent=1)
        )
    else:
        _print(found, can_train)
    return 0 if can_train else 1
