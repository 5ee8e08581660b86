"""One world starter: torchrun and srun give what bnbench's own ranks give; Ctrl-C ends it all."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

import bnbench
from bnbench import cli
from tests.end_to_end.commands import (
    BNBENCH,
    NO_LOGGER,
    TINY,
    finish,
    record_files,
    records,
    run,
    start,
    train,
    tree,
)

pytestmark = pytest.mark.end_to_end
RUN = (*TINY, *NO_LOGGER, "norm.batch_size=64", "trainer.threads=1")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")  # fmt: skip
PATIENCE = 20.0  # seconds that Ctrl-C may take


def hashes(folder: Path) -> dict[int, str]:
    """The weights' digest by seed."""
    return {r.identity["seed"]: r.metrics["weights_sha256"] for r in records(folder)}


@pytest.fixture(scope="module")
def own_world(shared_workplace: Path) -> dict[int, str]:
    before = Path.cwd()
    os.chdir(shared_workplace)
    try:
        assert train("-m", *RUN, "seed=0,1", "name=own") == 0
    finally:
        os.chdir(before)
    return hashes(shared_workplace / "runs" / "own")


def test_a_sweep_under_torchrun_is_the_same_and_speaks_once(
    workplace: Path, own_world: dict[int, str]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = run([*torchrun, *rendezvous, "-m", "bnbench.train", "-m", *RUN, "seed=0,1", "name=t"], workplace)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr  # extension modules tell of what a frozen collector keeps at the end
    assert hashes(workplace / "runs" / "t") == own_world
    assert {r.provenance["world"]["origin"] for r in records(workplace / "runs")} == {"torchrun"}
    for once in ("1 cell(s), 2 run(s), on 2 rank(s)", "[1/2] ", "[2/2] ", "val. error %", "Next:"):
        assert done.stdout.count(once) == 1, once
    assert {path.name for path in workplace.iterdir()} == {"runs"}
    assert {path.name for path in (workplace / "runs").iterdir()} == {"t"}  # no second sweep folder
    again = re.search(r"^ +torchrun --nproc-per-node 2 -m bnbench.train (.*)$", done.stdout, re.MULTILINE)
    assert again is not None and again[1].startswith("-m ")


def test_a_run_under_srun_is_the_same(workplace: Path, own_world: dict[int, str]) -> None:
    """Two tasks as `srun --ntasks 2` describes them: SLURM_NTASKS_PER_NODE is set only if it was asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "bnbench",
        "SLURM_NTASKS": "2",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_ID": "0",
        "MASTER_PORT": str(port),  # else derived from the job's id, and taken by chance
    }
    tasks = [
        start(
            [BNBENCH, "train", *RUN, "name=u"],
            workplace,
            **step,
            SLURM_PROCID=str(i),
            SLURM_LOCALID=str(i),
            SLURM_NODEID="0",
        )
        for i in range(2)
    ]
    first, second = (finish(task) for task in tasks)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    assert "record: runs/u/" in first.stdout
    (record,) = records(workplace / "runs")
    assert record.metrics["weights_sha256"] == own_world[0]
    assert record.provenance["world"]["origin"] == "srun"
    assert record.provenance["slurm_job"] == "4242"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_world_of_another_size_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Told by the first rank alone, before torch could wait for ranks that never come."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for key, value in (world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 9}).items():
        monkeypatch.setenv(key, str(value))
    code = cli.main(["train", *RUN, "trainer.devices=3", "global_batch=48", "norm.batch_size=16"])
    captured = capsys.readouterr()
    assert captured.out == ""
    if rank == 0:
        assert code == 2
        assert len(captured.err.splitlines()) == 1
        for text in ("torchrun started 2 rank(s)", "trainer.devices=3", "set trainer.devices=2"):
            assert text in captured.err
    else:
        assert captured.err == ""
    assert tree(workplace) == {}


def test_a_refusal_under_torchrun_is_told_however_slow_the_first_rank(workplace: Path) -> None:
    """torchrun ends the other ranks as soon as one of them fails: rank 0 must have had its say."""
    slow = f'if [ "$RANK" = 0 ]; then sleep 1.5; fi; exec {shlex.quote(sys.executable)} -m bnbench.train "$@"'
    words = [*RUN, "trainer.devices=3", "global_batch=48", "norm.batch_size=16"]
    done = run([*TORCHRUN, "--no-python", "bash", "-c", slow, "bash", *words], workplace)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("bnbench train: ")]
    assert len(ours) == 1, done.stderr
    assert "torchrun started 2 rank(s)" in ours[0]
    package = Path(bnbench.__file__).parent  # torchrun's own traceback is torchrun's
    assert f'File "{package}/' not in done.stderr
    assert tree(workplace) == {}


def processes_of(session: int) -> list[str]:
    """The command lines of the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended since
            continue
    return found


def left_in(temporary: Path) -> list[str]:
    """What bnbench and multiprocessing left of their temporary files; torch keeps a cache of its own."""
    return [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor")]


def interrupt(process, seconds: float = PATIENCE):
    """Ctrl-C as a terminal sends it: to the whole process group. Nothing may be left a while later."""
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process, seconds)
    while (left := processes_of(process.pid)) and time.monotonic() - started < seconds:
        time.sleep(0.1)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left
    return done


@pytest.mark.once
def test_ctrl_c_in_a_sweep_keeps_what_is_finished(workplace: Path, temporary: Path) -> None:
    words = ("-m", *TINY, *NO_LOGGER, "data.max_train=1024", "seed=0,1,2,3", "name=i")
    process = start([BNBENCH, "train", *words], workplace, TMPDIR=str(temporary))
    deadline = time.monotonic() + 100
    while not (kept := record_files(workplace)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    done = interrupt(process)
    assert done.returncode == 130, done.stderr
    assert kept and len(record_files(workplace)) < 4, "the sweep was over before the interruption"
    assert "Missing: " in done.stdout
    assert left_in(temporary) == []
    assert train(*words) == 0
    after = record_files(workplace)
    assert len(after) == 4
    assert {path: after[path] for path in kept} == kept
    assert {record.status for record in records(workplace / "runs")} == {"completed"}


@pytest.mark.once
def test_ctrl_c_twice_waits_for_nothing(workplace: Path, temporary: Path) -> None:
    """The window that the run is in, its one epoch, would last for minutes."""
    words = ("data=synthetic", "data.image_size=8", "data.train_images=400000", "epochs=1", "optim.warmup_epochs=0",
             "trainer.log_every=1000000", "measure.health_every=10", "name=i", *NO_LOGGER)  # fmt: skip
    process = start([BNBENCH, "train", *words], workplace, TMPDIR=str(temporary))
    deadline = time.monotonic() + 100
    while not list(workplace.rglob("health.csv")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert "Ctrl-C again ends it at once" in process.stdout.readline()
    done = interrupt(process, 30)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "bnbench: interrupted; what is finished is kept, the same command goes on\n"
    assert left_in(temporary) == []
    assert record_files(workplace) == {}


@pytest.mark.once
def test_ctrl_c_while_the_ranks_start_leaves_nothing(workplace: Path, temporary: Path) -> None:
    process = start([BNBENCH, "train", *TINY, *NO_LOGGER], workplace, TMPDIR=str(temporary))
    deadline = time.monotonic() + 60
    while not any("forkserver" in line for line in processes_of(process.pid)):  # it imports torch now
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    done = interrupt(process)
    assert done.returncode == 130, done.stderr
    assert "Missing: 1 of 1 run(s): 1 not begun." in done.stdout
    assert tree(workplace) == {}
    assert left_in(temporary) == []
