"""`bnbench plan` beside the `bnbench train` that it speaks of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnbench import cli
from tests.end_to_end.commands import NO_LOGGER, TINY, bnbench, records, run, train, tree

pytestmark = pytest.mark.end_to_end


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
    assert tree(workplace) == before
