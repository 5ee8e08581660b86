"""Every study in conf/experiment says what it is for, and runs."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from bnbench.compose import compose_jobs, config_folder
from bnbench.records import EPOCHS, RECORD, find_records, read_record
from tests.end_to_end.commands import NO_LOGGER, TINY, train

pytestmark = pytest.mark.end_to_end
EXPERIMENTS = sorted((config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_runs_for_two_steps(workplace: Path, file: Path) -> None:
    words = ["-m", f"experiment={file.stem}", *TINY, *NO_LOGGER, "name=short", "seed=0", "global_batch=64"]
    asked = {job.folder.name: job for job in (job.without_ignored() for job in compose_jobs(words[1:], True))}
    assert train(*words) == 0
    folders = {path.parent for path in find_records(workplace / "runs" / "short")}
    assert {folder.name for folder in folders} == asked.keys()
    for folder in folders:
        assert read_record(folder / RECORD).status == "completed"
        with (folder / EPOCHS).open(newline="") as series:
            assert [row["step"] for row in csv.DictReader(series)] == ["2"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_opens_with_what_it_shows_and_how_to_run_it(file: Path) -> None:
    head = {}
    for line in file.read_text().splitlines():
        key, colon, rest = line.removeprefix("# ").partition(":")
        if line.startswith("#") and colon and " " not in key:
            head[key] = rest.strip()
    assert {"Shows", "Run", "Takes", "See"} <= head.keys()
    assert all(head.values())
    command = shlex.split(head["Run"])
    assert command[:3] == ["bnbench", "train", "-m"]
    runs = compose_jobs(command[3:], multirun=True)
    assert len(runs) > 1
    assert {run.name for run in runs} == {file.stem}
