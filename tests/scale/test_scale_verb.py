"""`bnbench scale` as a user calls it."""

from __future__ import annotations

import csv
import json
import socket
import sys
from pathlib import Path

import pytest

from bnbench import cli
from tests.end_to_end.commands import BNBENCH, bnbench, finish, run, start

WORDS = (
    "data=synthetic",
    "data.train_images=64",
    "model.width=4",
    "global_batch=8",
    "trainer.accelerator=cpu",
)
GIVEN = ("--interconnect", "nvlink4,8xndr", "--step-ms", "90")
FILES = {"figure.png", "figure.svg", "scale.csv", "scale.json", "scale.md"}


def test_help_and_arithmetic_import_no_torch(tmp_path: Path) -> None:
    heavy = ("torch", "lightning", "wandb", "torchvision")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({heavy!r}))\n"
        "import bnbench.scale.prediction, bnbench.scale.table, bnbench.scale.figure, bnbench.scale.ranks\n"
        "from bnbench.cli import main\n"
        "main(['scale', '--help'])\n"
    )
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nvlink4" in done.stdout and "usage: bnbench scale" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm=gn"], "norm=gn: scale compares bn"),
        (["norm.batch_size=64"], "norm.batch_size=64 would be ignored: --group"),
        (["norm.placement=after"], "set norm.placement=before"),
        (["recipe.accumulate=2"], "set recipe.accumulate=1"),
        (["trainer.compile=true"], "set trainer.compile=False"),
        (["trainer.precision=fp64"], "trainer.precision=fp64: scale counts statistics in fp32"),
        (["trainer.devices=1"], "trainer.devices=1: one rank exchanges nothing"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: one process cannot start ranks on other nodes"),
        (["model=resnet9"], "unknown model 'resnet9'"),
        (["seed=0,1"], "seed=0,1"),
        (["--interconnect=ib"], "unknown --interconnect 'ib'; known: nvlink3"),
        (["--step-ms=90"], "--step-ms=90 must be above 0, and goes with --interconnect WITHIN,BETWEEN"),
        (["--step-ms=0", "--interconnect=hdr,hdr"], "--step-ms=0 must be above 0"),
        (["--rounds=0"], "--rounds=0 must lie between 1"),
        (["--max-gpus=0"], "--max-gpus=0 must lie between 1"),
        (["--gpus-per-node=-8"], "--gpus-per-node=-8 must lie between 1"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--out=/dev/null/x", *GIVEN], "--out=/dev/null/x: cannot be made"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnbench scale: ") and said in error and error.count("\n") == 1


def test_with_links_and_step_given_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnbench.scale.ranks.measure", None)
    assert cli.main(["scale", *WORDS, *GIVEN, f"--out={tmp_path / 'a' / 'b'}", "--max-gpus=64"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[:10])) <= 110
    assert "90 ms as given" in told and "[" not in told.split("resnet8:")[0]
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "figure.png" in (folder / "scale.md").read_text()
    rows = list(csv.DictReader((folder / "scale.csv").open()))
    assert len(rows) == 7 * 4 * 2  # worlds, spans, algorithms
    assert {row["gpus"] for row in rows} == {"1", "2", "4", "8", "16", "32", "64"}
    for row in rows:
        assert float(row["step_ms"]) >= 90
        assert row["step_ms_low"] == row["step_ms"] == row["step_ms_high"]


def test_what_is_given_twice_is_the_same_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert cli.main(["scale", *WORDS, *GIVEN, f"--out={tmp_path / name}"]) == 0
    for file in ("figure.svg", "scale.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    command = json.loads((tmp_path / "a" / "scale.json").read_text())["command"]
    assert command.startswith("bnbench scale data=synthetic") and "--out" not in command


@pytest.mark.end_to_end
def test_on_two_ranks_it_measures_compares_and_predicts(tmp_path: Path) -> None:
    done = bnbench("scale", *WORDS, "--rounds=2", "--json", "--out=kept", "--max-gpus=32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "measuring 2 of 2 rank(s)" in done.stderr
    assert {path.name for path in (tmp_path / "kept").iterdir()} == FILES
    assert json.loads((tmp_path / "kept" / "scale.json").read_text())["predictions"] == found["predictions"]
    assert [check["what"] for check in found["checks"]] == ["bn", "sync", "overhead"]
    for check in found["checks"]:
        assert check["ratio"] == pytest.approx(check["predicted"]["value"] / check["measured"]["value"])
    (world,) = found["measured"]["worlds"]
    assert {len(times) for times in world["steps"].values()} == {2}
    by_key = {(row["gpus"], row["span"], row["algorithm"]): row for row in found["predictions"]}
    for algorithm in ("ring", "tree"):
        steps = [by_key[gpus, "world", algorithm]["seconds"]["value"] for gpus in (1, 2, 4, 8, 16, 32)]
        assert steps == sorted(steps)
        assert by_key[32, "device", algorithm]["overhead"]["value"] == 0
    # At the ranks at hand the prediction is that of the check, whatever the algorithm.
    predicted = next(c["predicted"]["value"] for c in found["checks"] if c["what"] == "sync")
    assert by_key[2, "world", "ring"]["seconds"]["value"] == pytest.approx(predicted, rel=1e-6)
    page = (tmp_path / "kept" / "scale.md").read_text()
    assert "predicted / measured" in page and "one node at hand" in page


def test_under_torchrun_the_first_rank_speaks(tmp_path: Path) -> None:
    torchrun = str(Path(BNBENCH).with_name("torchrun"))
    command = [torchrun, "--standalone", "--nproc-per-node=2", "-m", "bnbench.cli", "scale", *WORDS]
    done = run([*command, "trainer.devices=2", "--rounds=1", "--json"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured"]["ranks"] == 2
    wrong = run([*command, "trainer.devices=4", "--rounds=1"], cwd=tmp_path)
    assert wrong.returncode != 0
    assert "torchrun started 2 rank(s)" in wrong.stderr
    assert wrong.stderr.count("bnbench scale: ") == 1


def test_on_two_nodes_the_links_between_them_are_measured(tmp_path: Path) -> None:
    """Two nodes of one rank each, as srun or torchrun would start them; this host plays both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    words = (
        "trainer.devices=1",
        "trainer.num_nodes=2",
        "--rounds=1",
        "--json",
        "--gpus-per-node=2",
        "--max-gpus=8",
    )
    command = [BNBENCH, "scale", *WORDS, *words]
    ranks = [start(command, cwd=tmp_path, RANK=str(rank), **world) for rank in range(2)]
    first, second = (finish(rank) for rank in ranks)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    found = json.loads(first.stdout)
    assert (found["measured"]["ranks"], found["measured"]["node"]) == (2, 1)
    for algorithm in ("ring", "tree"):  # ranks of a node were never seen: they are joined as nodes are
        assert found["links"][algorithm]["within"] == found["links"][algorithm]["between"]


@pytest.mark.end_to_end
def test_data_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = bnbench("scale", "data=cifar10", f"data.root={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("bnbench scale: "), done.stderr
    assert "Traceback" not in done.stderr
