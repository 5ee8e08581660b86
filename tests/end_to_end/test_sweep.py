"""A sweep from the console: what it says, what it leaves on disk and in W&B, and what it does again."""

from __future__ import annotations

import csv
import json
import re
import shlex
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bnbench.compose import compose_jobs
from bnbench.folders import config_folder
from bnbench.lock import RunLock
from bnbench.provenance import code_digest
from bnbench.records import EPOCHS, RECORD, Record, digest, find_records, read_record
from tests.end_to_end.commands import NO_LOGGER, TINY, bnbench, record_files, records, train, tree

pytestmark = pytest.mark.end_to_end
SWEEP = ("norm=bn,gn", "norm.batch_size=2,4", "seed=0,1", "name=s")
WORDS = ("train", "-m", *SWEEP, *TINY, "epochs=2")
RUNS = {f"resnet8-{cell}-s{seed}" for cell in ("bn-nbs2", "bn-nbs4", "gn") for seed in (0, 1)}


@pytest.fixture(scope="module")
def sweep(shared_workplace: Path) -> subprocess.CompletedProcess[str]:
    return bnbench(*WORDS, cwd=shared_workplace)


@pytest.fixture(scope="module")
def folder(shared_workplace: Path, sweep: subprocess.CompletedProcess[str]) -> Path:
    """Where the sweep's runs are; the fixture above has run."""
    assert sweep.returncode == 0, sweep.stderr
    return shared_workplace / "runs" / "s"


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[tuple[Path, Record]]:
    return [(path.parent, read_record(path)) for path in find_records(folder)]


def test_the_sweep_says_what_collapses_and_shows_the_answer(
    sweep: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert "3 cell(s), 6 run(s), on 2 rank(s), into runs/s" in sweep.stdout
    assert "8 combinations are 6 distinct runs: norm=gn does not read norm.batch_size" in sweep.stdout
    for number in range(1, 7):
        assert f"[{number}/6] " in sweep.stdout
    assert sweep.stderr == ""
    table = sweep.stdout.partition("val. error %")[2]
    for row in ("bn +2 ", "bn +4 ", "gn +– "):
        assert re.search(row, table)
    for file in ("report.html", "figure.png", "cells.csv"):
        assert f"runs/s/report/{file}" in sweep.stdout
        assert (folder / "report" / file).stat().st_size > 0
    assert (folder / "report" / "figure.svg").read_text().lstrip().startswith("<?xml")


def test_the_commands_it_suggests_are_right(sweep: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    """Each is shell, and each `bnbench train` composes; the placeholder folder is put there."""
    suggested = re.findall(r"^ +((?:bnbench|wandb) .*)$", sweep.stdout.partition("\nNext:")[2], re.MULTILINE)
    assert len(suggested) == 3
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    for line in suggested:
        line = line.replace("FOLDER", str(tmp_path))
        checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{line}: {checked.stderr}"
    more_seeds, own_images = (shlex.split(line.replace("FOLDER", str(tmp_path))) for line in suggested[:2])
    assert more_seeds[:3] == own_images[:3] == ["bnbench", "train", "-m"]
    asked = {job.without_ignored().folder.name for job in compose_jobs(more_seeds[3:], True)}
    before = {job.without_ignored().folder.name for job in compose_jobs(WORDS[2:], True)}
    assert before < asked  # more seeds of the same cells, the finished ones among them
    assert {job.data.name for job in compose_jobs(own_images[3:], True)} == {"image_folder"}


def test_each_distinct_run_leaves_a_complete_record(runs: list[tuple[Path, Record]]) -> None:
    assert {record.name for _, record in runs} == RUNS
    for folder, record in runs:
        assert record.status == "completed"
        assert record.error is None
        missing = [key for key in REQUIRED if _at(record, key) is None]
        assert not missing
        if (config_folder().parent / ".git").exists():  # nulls elsewhere: an installed wheel has no commit
            git = record.provenance["git"]
            assert re.fullmatch("[0-9a-f]{40}", git["commit"]) and isinstance(git["dirty"], bool)
        batch_norm = record.identity["norm"]["name"] == "bn"
        assert (record.identity["nbs"] is not None) == batch_norm
        if batch_norm:
            assert record.provenance["statistics_policy"] == record.identity["norm"]["statistics"] == "mean"
        assert record.provenance["world"]["size"] == record.identity["world_size"] == 2
        assert record.provenance["data"]["test_images"] == 64
        assert folder.name == f"{record.name}-{record.id}"
        assert record.id == digest(record.identity)
    assert len({record.id for _, record in runs}) == 6
    assert len({record.metrics["weights_sha256"] for _, record in runs}) == 6


REQUIRED = [
    *(f"identity.{key}" for key in ("model.name", "norm.name", "data.name", "recipe", "precision", "seed")),
    *(f"identity.{key}" for key in ("per_device_batch", "global_batch", "world_size", "recipe.lr_rule")),
    *(f"config.{key}" for key in ("name", "dir", "model", "norm", "data", "optim", "trainer", "logger")),
    *(f"metrics.{key}" for key in ("final_val_error", "final_val_loss", "train_error", "train_loss")),
    *(f"metrics.{key}" for key in ("params", "weights_sha256")),
    *(f"timings.{key}" for key in ("setup_seconds", "fit_seconds", "images_per_s", "step_ms")),
    *(f"provenance.versions.{key}" for key in ("python", "bnbench", "torch", "torchvision", "lightning")),
    *(f"provenance.versions.{key}" for key in ("hydra-core", "wandb", "numpy", "scikit-learn")),
    *(f"provenance.host.{key}" for key in ("name", "cpu", "cores", "platform")),
    *(f"provenance.device.{key}" for key in ("type", "threads")),
    *(f"provenance.world.{key}" for key in ("size", "nodes", "backend", "origin", "span.kind")),
    *(f"provenance.{key}" for key in ("written", "memory_format", "dtype")),
    *(f"provenance.flags.{key}" for key in ("matmul_tf32", "cudnn_tf32", "cudnn_benchmark")),
    "provenance.flags.cudnn_deterministic",
    *(f"provenance.data.{key}" for key in ("train_images", "test_images", "train_sha256", "test_sha256")),
    *(f"wandb.{key}" for key in ("id", "name", "group", "project")),
]


def _at(record: Record, key: str) -> Any:
    first, *rest = key.split(".")
    value = getattr(record, first)
    for part in rest:
        value = value[part]
    return value


def test_a_series_lies_beside_each_record(runs: list[tuple[Path, Record]]) -> None:
    for folder, record in runs:
        with (folder / EPOCHS).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["step"]) for row in rows] == [("0", "2"), ("1", "4")]
        # Below 10 epochs, `final` is the last one.
        assert float(rows[-1]["val_error"]) == record.metrics["final_val_error"]
        assert float(rows[-1]["val_loss"]) == record.metrics["final_val_loss"]


def test_the_sweep_lies_in_one_stable_folder(folder: Path) -> None:
    entries = {path.name for path in folder.iterdir()}
    run_folders = {path.parent.name for path in find_records(folder)}
    assert entries == {"multirun.yaml", "report", ".wandb"} | run_folders
    assert {path.name for path in folder.parent.parent.iterdir()} == {"runs"}
    assert {path.name for path in folder.parent.iterdir()} == {"s"}
    hidden = [path for path in tree(folder) if Path(path).name.startswith(".")]
    # W&B's cache and the report's; atomic writes leave nothing.
    assert hidden == [".wandb", "report/.files.parquet"]


def test_each_run_is_one_wandb_run(runs: list[tuple[Path, Record]]) -> None:
    ids = set()
    for folder, record in runs:
        (offline,) = (folder / "wandb").glob("offline-run-*")
        (log,) = offline.glob("*.wandb")
        run, summary, history = read_wandb(log)
        ids.add(run.run_id)
        assert run.run_id == record.wandb["id"]
        assert (run.display_name, run.run_group, run.job_type) == (record.name, "s", "train")
        assert run.project == "bnbench"
        assert list(run.tags) == ["resnet8", record.identity["norm"]["name"], "digits"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key}
        assert {key: config[key] for key in record.config} == json.loads(json.dumps(record.config))
        assert config["identity"] == record.identity
        assert summary["status"] == "completed"
        for key, value in record.metrics.items():
            assert summary[f"final/{key.removeprefix('final_')}"] == value
        # One point an epoch for validation, none lost: the last is what the record says.
        assert [row["trainer/global_step"] for row in history if "val/error" in row] == [2, 4]
        assert [row["val/error"] for row in history if "val/error" in row][-1] == (
            record.metrics["final_val_error"]
        )
        for row in history:
            assert {"train/loss", "train/error", "lr", "throughput/images_per_s"} <= row.keys() or (
                "val/loss" in row
            )
    assert len(ids) == 6


def read_wandb(log: Path) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """The run, final summary and history rows of an offline W&B file."""
    from wandb.proto.wandb_internal_pb2 import Record as Entry

    run, summary, history = None, {}, []
    for data in _leveldb_records(log.read_bytes()):
        entry = Entry.FromString(data)
        kind = entry.WhichOneof("record_type")
        if kind == "run":
            run = entry.run
        elif kind == "summary":
            summary |= _values(entry.summary.update)
        elif kind == "history":
            history.append(_values(entry.history.item))
    assert run is not None
    return run, summary, history


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after W&B's 7-byte header: blocks of 32 KiB, chunks of crc, length, type."""
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield record
            record = b""


def test_the_same_command_again_trains_nothing(folder: Path) -> None:
    before = record_files(folder)
    again = bnbench(*WORDS, cwd=folder.parent.parent)
    assert again.returncode == 0, again.stderr
    assert "6 of 6 run(s) are finished already and kept" in again.stdout
    assert not re.search(r"\[\d+/\d+\]", again.stdout)
    assert "val. error" in again.stdout
    assert record_files(folder) == before
    assert len(list(folder.glob("*/wandb/offline-run-*"))) == 6


def test_only_what_is_missing_trains(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """A lost record, and one cut off in mid-write by some other tool, are trained again to the same weights."""
    lost, broken = sorted(path for path in find_records(folder) if "-gn-" in path.parent.name)
    wanted = [read_record(path).metrics["weights_sha256"] for path in (lost, broken)]
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:300])
    before = record_files(folder)
    monkeypatch.chdir(folder.parent.parent)
    assert train(*WORDS[1:], *NO_LOGGER) == 0
    assert "4 of 6 run(s) are finished already" in capsys.readouterr().out
    assert [read_record(path).metrics["weights_sha256"] for path in (lost, broken)] == wanted
    after = record_files(folder)
    assert {path: after[path] for path in before if path != str(broken)} == {
        path: value for path, value in before.items() if path != str(broken)
    }
    for path in (lost, broken):  # not a second series behind the first
        assert len((path.parent / EPOCHS).read_text().splitlines()) == 3


def test_what_is_in_other_hands_is_left_there_and_told(workplace: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("bnbench.sweep.queue.PATIENCE_SECONDS", 0.5)
    words = (*TINY, *NO_LOGGER, "seed=0,1", "name=shared")
    (run, _) = compose_jobs(words, multirun=True)
    run.folder.mkdir(parents=True)
    lock = RunLock(run.folder)
    assert lock.take()
    assert train("-m", *words) == 75
    said = capsys.readouterr().out
    assert "Missing: 1 of 2 run(s): 1 being trained by another process." in said
    assert "[1/2]" in said and "[2/2]" not in said
    lock.release()
    assert train("-m", *words) == 0
    assert "Missing" not in capsys.readouterr().out


def test_what_other_code_left_is_refused_until_asked_for(workplace: Path, capsys) -> None:
    words = ("-m", *TINY, *NO_LOGGER, "seed=0,1", "name=old")
    assert train("-m", *TINY, *NO_LOGGER, "seed=0", "name=old") == 0
    (path,) = find_records(workplace)
    path.write_text(path.read_text().replace(code_digest(), "other"))
    before = tree(workplace)
    capsys.readouterr()
    assert train(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "1 of 2 run(s) in runs/old were finished by other code" in captured.err
    assert tree(workplace) == before
    assert train(*words, "reuse_records=true") == 0
    assert "as reuse_records=true asks" in capsys.readouterr().out
    assert path.read_bytes() == before[str(path.relative_to(workplace))]
    assert len(list(find_records(workplace))) == 2


def test_report_reads_the_folder_again(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    before = record_files(folder)
    from bnbench import cli

    assert cli.main(["report", "runs/s"]) == 0
    captured = capsys.readouterr()
    assert "runs/s/report/figure.png" in captured.out
    assert captured.err == ""
    assert record_files(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("optim.lr=1e30", "epochs=2"), id="in training"),
        # One step: its loss is finite, what the step makes of the weights is not.
        pytest.param(("optim.lr=1e38", "data.max_train=64"), id="seen only in validation"),
    ],
)
def test_a_diverged_run_is_a_result(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    command = (*TINY, *NO_LOGGER, "norm=gn", *words, "name=d")
    assert train(*command) == 0
    (record,) = records(workplace / "runs")
    assert record.status == "diverged"
    assert record.metrics["final_val_error"] is None
    assert record.error is not None and "not finite" in record.error
    before = record_files(workplace)
    capsys.readouterr()
    assert train(*command) == 0  # it would diverge again
    assert "1 of 1 run(s) are finished already" in capsys.readouterr().out
    assert record_files(workplace) == before


def test_syncbn_and_bn_at_world_are_one_cell(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", *TINY, *NO_LOGGER, "norm=syncbn,bn", "norm.batch_size=64", "name=w") == 0
    out = capsys.readouterr().out
    assert "1 cell(s), 1 run(s)" in out
    assert "2 combinations are 1 distinct runs" in out
    (record,) = records(workplace / "runs")
    assert (record.name, record.identity["norm"]["name"]) == ("resnet8-bn-nbs64-s0", "bn")
    assert (workplace / "runs" / "w" / f"{record.name}-{record.id}" / RECORD).exists()
