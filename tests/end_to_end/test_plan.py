"""`bnbench plan` beside the `bnbench train` that it speaks of."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bnbench import cli
from bnbench.records import RECORD, read_record
from tests.end_to_end.commands import (
    BNBENCH,
    NO_LOGGER,
    SECONDS,
    TINY,
    bnbench,
    finish,
    records,
    run,
    start,
    train,
    tree,
)


def test_a_plan_imports_nothing_heavy_and_leaves_nothing(workplace: Path) -> None:
    """`None` in sys.modules makes an import fail, were it only tried."""
    commands = [
        ["plan", "--help"],
        ["plan"],
        ["plan", "--cfg", "job"],
        ["plan", "-m", "experiment=quickstart"],
        ["plan", "-m", "experiment=quickstart", "--json"],
        ["plan", "norm=bnn"],
        ["plan", "-m", "norm.batch_size=2,24"],
    ]
    code = (
        "import json, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'lightning', 'wandb', 'torchvision', 'polars', 'matplotlib')))\n"
        "from bnbench.cli import main\n"
        f"codes = [main(words) for words in {commands!r}]\n"
        "print(json.dumps(codes))\n"
    )
    done = run([sys.executable, "-c", code], cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 0, 0, 0, 2, 2]
    assert tree(workplace) == {}


def test_on_the_console_the_json_stands_alone(workplace: Path) -> None:
    done = bnbench("plan", "-m", "norm=bn,gn", "seed=0,1", "--json", cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["totals"]["runs"] == 4


def test_one_rank_speaks_where_something_else_started_them(workplace: Path) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    first = bnbench("plan", cwd=workplace, RANK="0", LOCAL_RANK="0", **world)
    second = bnbench("plan", cwd=workplace, RANK="1", LOCAL_RANK="1", **world)
    assert "1 cell(s), 1 run(s)" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_what_a_run_took_is_what_the_next_will_take(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", *TINY, *NO_LOGGER, "norm=bn", "name=x")
    assert train(*words, "seed=0") == 0
    (record,) = records(workplace / "runs")
    before = tree(workplace)
    capsys.readouterr()
    assert cli.main(["plan", "--json", *words, "seed=0,1"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert [run["status"] for run in cell["runs"]] == ["finished", "todo"]
    took = sum(record.timings[f"{part}_seconds"] for part in ("setup", "fit", "measure"))
    assert cell["seconds"] == pytest.approx(took)
    assert cell["source"] == "1 run of this cell"
    assert cell["peak_bytes"] == record.memory["peak_bytes"] > 0
    assert cell["params"] == record.metrics["params"]
    assert tree(workplace) == before


FAILS_IN_TRAINING = '''
import torch
from torch import nn


class Hungry(nn.BatchNorm2d):
    """Takes the forward pass that looks whether a step is possible, and no backward one."""

    def forward(self, x):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("made up: out of memory")
        return super().forward(x)


def hungry(num_features):
    return Hungry(num_features)
'''


def probed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert cli.main(["plan", "--json", "--probe", *words]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_a_probe_leaves_nothing_but_what_it_tells(
    workplace: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workplace / "mine.py").write_text(FAILS_IN_TRAINING)
    before = tree(workplace)
    words = ("-m", "norm=bn,gn", "trainer.devices=1", "name=x", *TINY)
    found, told = probed(capsys, *words)
    assert [cell["source"] for cell in found["cells"]] == ["probe", "probe"]
    for cell in found["cells"]:
        assert cell["seconds"] > 0 and cell["peak_bytes"] > 0 and cell["params"] > 0
        assert f"probe: {cell['runs'][0]['name']}: " in told
    assert found["totals"]["without_estimate"] == 0
    assert found["disk"]["unknown_runs"] == 0
    assert found["device"]["type"] == "cpu"
    # One that does not survive its first step is told, and costs the others nothing.
    found, told = probed(capsys, "-m", "norm=custom", "norm.name=mine.hungry", "trainer.devices=1", *TINY)
    (cell,) = found["cells"]
    assert (cell["seconds"], cell["source"]) == (None, None)
    assert "oom" in cell["problem"] and "made up: out of memory" in cell["problem"]
    assert cell["problem"] in told
    shutil.rmtree(workplace / "__pycache__", ignore_errors=True)  # Python's, of mine.py
    assert tree(workplace) == before
    # Its forkserver's folder is multiprocessing's, and goes when this process ends.
    assert [path for path in temporary.iterdir() if not path.name.startswith("pymp-")] == []


TALKS = """
import os
from torch import nn


def norm(num_features):
    print("a norm", flush=True)
    os.write(1, b"and its library")
    return nn.BatchNorm2d(num_features)
"""


def test_what_a_users_code_prints_is_not_in_the_json(workplace: Path) -> None:
    (workplace / "talks.py").write_text(TALKS)
    words = ("norm=custom", "norm.name=talks.norm", "trainer.devices=1", *TINY)
    done = bnbench("plan", "--json", "--probe", *words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"][0]["source"] == "probe"
    assert "a norm" in done.stderr and "and its library" in done.stderr


@pytest.mark.slow
def test_a_probe_tells_what_a_run_takes(workplace: Path, tmp_path: Path) -> None:
    """In processor time of one thread, which other processes of the machine leave alone."""
    (tmp_path / "clock").mkdir()
    clock = "import time\ntime.perf_counter = time.process_time\n"
    (tmp_path / "clock" / "sitecustomize.py").write_text(clock)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "clock"), str(Path(__file__).parents[2])])}
    words = ("-m", "norm=bn,gn", "trainer.devices=1", "trainer.threads=1", "data.max_train=1024", *NO_LOGGER)
    told = run([BNBENCH, "plan", "--json", "--probe", *words], cwd=workplace, **path)
    assert told.returncode == 0, told.stderr
    done = run([BNBENCH, "train", *words], cwd=workplace, **path)
    assert done.returncode == 0, done.stderr
    for cell in json.loads(told.stdout)["cells"]:
        (planned,) = cell["runs"]
        record = read_record(workplace / planned["folder"] / RECORD)
        took = sum(record.timings[f"{part}_seconds"] for part in ("setup", "fit", "measure"))
        assert cell["seconds_per_run"] == pytest.approx(took, rel=0.4)
        assert cell["peak_bytes"] == pytest.approx(record.memory["peak_bytes"], rel=0.2)


def test_asked_to_stop_a_probe_leaves_nothing(workplace: Path, temporary: Path) -> None:
    words = ("plan", "--probe", "-m", "norm=bn,gn", "trainer.devices=1", *NO_LOGGER)
    process = start([BNBENCH, *words], cwd=workplace, TMPDIR=str(temporary))
    until = time.monotonic() + SECONDS
    while not list(temporary.glob("bnbench-plan-*/*/*")):  # a run's folder: it is being trained
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    done = finish(process)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.splitlines()[-1] == "bnbench plan: asked to stop; the probes leave nothing"
    assert tree(workplace) == {}
    assert list(temporary.glob("bnbench*")) == []
