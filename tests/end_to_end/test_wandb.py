"""W&B beside whole commands: its agent starts them, kills end them, and its server still has each step once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnbench.compose import compose_jobs
from bnbench.curves import points
from bnbench.folders import config_folder
from bnbench.records import RECORD, find_records, read_record
from bnbench.sweep.plan import plan_single
from tests.end_to_end.commands import BNBENCH, TINY, clean_environment, finish, run, start
from tests.wandb_stub import WandbStub

SWEEP = config_folder() / "wandb_sweep.yaml"
ONE_RANK = ("trainer.devices=1", "trainer.threads=1", "trainer.accelerator=cpu", "model.width=4")
WANDB = [sys.executable, "-m", "wandb"]


@pytest.fixture
def server() -> Iterator[WandbStub]:
    with WandbStub() as stub:
        yield stub


def _each_step_once(server: WandbStub, folder: Path) -> None:
    """The server's run of a run folder has the rows of its files, and no other."""
    sent = server.runs[read_record(folder / RECORD).wandb["id"]]
    assert sent.steps == list(points(folder))


@pytest.mark.end_to_end
def test_the_shipped_sweep_is_driven_by_wandbs_agent(workplace: Path, server: WandbStub) -> None:
    """With fewer values and small runs; the agent's ids are the records', and its metric is there."""
    sweep = yaml.safe_load(SWEEP.read_text())
    sweep["parameters"] |= {
        "norm": {"values": ["bn"]},
        "norm.batch_size": {"values": [8, 16]},
        "seed": {"value": 1},
    }
    for word in (*TINY, *ONE_RANK):
        key, _, value = word.partition("=")
        sweep["parameters"][key] = {"value": yaml.safe_load(value)}
    (workplace / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    tools = str(Path(BNBENCH).parent) + os.pathsep + os.environ["PATH"]
    environment = server.environment(HOME=str(workplace), PATH=tools)
    del environment["WANDB_MODE"]
    made = run([*WANDB, "sweep", "sweep.yaml"], workplace, **environment)
    assert made.returncode == 0, made.stderr
    (sweep_id,) = server.sweeps
    command = re.search(r"wandb agent (\S+)", made.stderr)
    assert command is not None, made.stderr
    done = run([*WANDB, "agent", "--count", "2", command[1]], workplace, **environment)
    assert done.returncode == 0, done.stderr
    records = {
        path.parent: read_record(path) for path in find_records(workplace / "runs" / f"sweep-{sweep_id}")
    }
    assert sorted(record.identity["nbs"] for record in records.values()) == [8, 16], done.stderr
    given = server.sweeps[sweep_id].runs
    assert len(given) == 2
    assert {record.wandb["id"] for record in records.values()} == set(given) == set(server.runs)
    for folder, record in records.items():
        sent = server.runs[record.wandb["id"]]
        assert (sent.state, sent.project, record.status) == ("finished", "bnbench", "completed")
        assert sent.rows[-1]["val/error"] == record.metrics["final_val_error"], "what the sweep minimizes"
        _each_step_once(server, folder)


def test_every_combination_of_the_shipped_sweep_is_a_run_of_its_own() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    fixed = [word for word in sweep["command"] if "=" in word]
    grid = [f"{key}={','.join(map(str, entry['values']))}" for key, entry in sweep["parameters"].items()]
    jobs = compose_jobs(
        [*(word.partition("${")[0] + "x" * ("${" in word) for word in fixed), *grid], multirun=True
    )
    assert len({plan_single(job).runs[0].folder for job in jobs}) == len(jobs) > 4
    assert {job.logger.mode for job in jobs} == {"online"}


LONG = (
    "data.max_train=2048", "data.max_test=64", "epochs=4", "optim.warmup_epochs=0", "trainer.log_every=2",
    "norm.batch_size=8", "trainer.checkpoint_minutes=0.02", "measure.health_every=5", *ONE_RANK[:3],
)  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize(("mode", "survivor"), [("online", "W&B's service"), ("offline", "nothing")])
def test_a_run_killed_anywhere_ends_as_one_run_with_each_step_once(
    workplace: Path, server: WandbStub, mode: str, survivor: str
) -> None:
    """SIGKILL of all that runs, or of all but the service, which goes on sending for a while."""
    words = [BNBENCH, "train", "name=k", *LONG]
    fast = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    environment = server.environment(HOME=str(workplace), WANDB_MODE=mode, **fast)
    for windows in (15, 40):
        process = start(words, workplace, **environment)
        folder = _after(workplace, windows, process)
        for pid in _session(process.pid, but=() if survivor == "nothing" else ("wandb-core",)):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / RECORD).exists()
        assert list((folder / "checkpoints").glob("*.ckpt"))
    done = finish(start(words, workplace, **environment))
    assert done.returncode == 0, done.stderr
    record = read_record(folder / RECORD)
    assert record.provenance["resumed"]
    if mode == "offline":
        (log,) = folder.glob("wandb/offline-run-*")
        synced = subprocess.run(
            [*WANDB, "sync", str(log)], cwd=workplace, env=clean_environment(**environment), capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert synced.returncode == 0, synced.stderr
    (sent,) = server.runs.values()
    _each_step_once(server, folder)
    assert (sent.state, sent.summary["status"]) == ("finished", "completed")
    again = run([BNBENCH, "sync", "runs/k"], workplace, **environment)
    assert "0 of 1 run(s) sent" in again.stdout, again.stdout + again.stderr


def _after(workplace: Path, windows: int, process: subprocess.Popen[str]) -> Path:
    """Waits until a run has left so many rows of its curve, and a checkpoint."""
    begun = time.monotonic()
    while time.monotonic() - begun < 90:
        for curve in workplace.glob("runs/k/*/curve.csv"):
            text = curve.read_text()
            if text.count("\n") > windows and list(curve.parent.glob("checkpoints/*.ckpt")):
                return curve.parent
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no {windows} windows after 90 s")


def _session(leader: int, but: tuple[str, ...] = ()) -> list[int]:
    """What runs of the session that a process led, and of what left it for a session of its own."""
    parents, found = dict[int, tuple[int, int, str]](), list[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        fields: Any = rest.split()
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = (int(fields[1]), int(fields[3]), name)
    for pid, (_, session, name) in parents.items():
        above, steps = pid, 0
        while above in parents and above != leader and steps < 20:
            above, steps = parents[above][0], steps + 1
        if (session == leader or above == leader) and not name.startswith(but or ("\0",)):
            found.append(pid)
    return found
