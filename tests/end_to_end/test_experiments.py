"""Every study in conf/experiment says what it is for, and runs."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bnbench import catalog
from bnbench.analysis.claims.measures import MEASURES
from bnbench.analysis.claims.table import TABLE
from bnbench.compose import compose_jobs
from bnbench.folders import config_folder
from bnbench.records import EPOCHS, RECORD, find_records, read_record
from bnbench.sweep.plan import plan_sweep
from tests.end_to_end.commands import NO_LOGGER, TINY, train

pytestmark = pytest.mark.end_to_end
FOLDER = config_folder() / "experiment"
EXPERIMENTS = {
    file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in sorted(FOLDER.rglob("*.yaml"))
}
CLAIMS = [name for name in EXPERIMENTS if name.startswith("claims/")]
PROTOCOLS = [name for name in EXPERIMENTS if name.startswith("protocols/")]


def sweep_of(name: str) -> dict[str, str]:
    """The keys that an experiment sweeps, with their values as written."""
    config: Any = OmegaConf.load(EXPERIMENTS[name])
    return {key: str(values) for key, values in config.hydra.sweeper.params.items()}


def head_of(name: str) -> dict[str, str]:
    """What a file opens with: each word and what follows it, on as many lines as it takes."""
    head: dict[str, str] = {}
    key = ""
    for line in EXPERIMENTS[name].read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        opened = re.match(r"# ([A-Z][a-z]+): +(.*)", line)
        if opened:
            key = opened[1]
            head[key] = opened[2]
        else:
            head[key] += " " + line.removeprefix("#").strip()
    return head


def first_of_each(name: str) -> list[str]:
    """Words for one run of an experiment: the first value of every key that it sweeps."""
    return [f"{key}={values.split(',')[0]}" for key, values in sweep_of(name).items()]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in PROTOCOLS])
@pytest.mark.once
def test_an_experiment_runs_for_two_steps(workplace: Path, name: str) -> None:
    short = ["name=short", "seed=0", "global_batch=64", "evals_per_epoch=1"]
    # The quickstart is a newcomer's first sweep: all of its cells. Of the others the first.
    cells = [] if name == "quickstart" else first_of_each(name)
    cells += ["data=digits"] if "/data: image_folder" in EXPERIMENTS[name].read_text() else []
    held_out = (
        ["data.max_train=208", "data.val_images=64"] if "val_images" in EXPERIMENTS[name].read_text() else []
    )
    words = ["-m", f"experiment={name}", *cells, *TINY, *NO_LOGGER, *held_out, *short]
    asked = {job.folder.name: job for job in plan_sweep(compose_jobs(words[1:], True)).runs}
    assert train(*words) == 0
    folders = {path.parent for path in find_records(workplace / "runs" / "short")}
    assert {folder.name for folder in folders} == asked.keys()
    for folder in folders:
        record = read_record(folder / RECORD)
        assert record.status == "completed"
        with (folder / EPOCHS).open(newline="") as series:
            assert [row["step"] for row in csv.DictReader(series)] == ["2"]
        if name in CLAIMS:
            claim = TABLE[record.config["claim"]]
            read = [MEASURES[side.measure] for c in claim.comparisons for side in (c.left, c.right)]
            wanted = {key for measure in read for key in (measure.key, measure.minus)} - {None}
            assert wanted <= record.metrics.keys(), "what the claim is judged by is in the record"


def words_of(name: str, images: Path) -> list[str]:
    """What the command in an experiment's head gives to `bnbench train -m`, with a folder for IMAGENET or IMAGES."""
    command = shlex.split(head_of(name)["Run"])
    start = command.index("-m", command.index("bnbench.train") if "bnbench.train" in command else 0)
    for split in ("train", "val", "test"):
        (images / split).mkdir()
    return [re.sub("IMAGENET|IMAGES", str(images), word) for word in command[start + 1 :]]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.once
def test_an_experiment_opens_with_what_it_shows_and_how_to_run_it(name: str, tmp_path: Path) -> None:
    head = head_of(name)
    assert list(head) == ["Shows", *(["Source"] if name in PROTOCOLS else []), "Run", "Takes", "See"]
    assert all(head.values())
    words = words_of(name, tmp_path)
    assert words[0] == f"experiment={name}"
    (run,) = compose_jobs([*words, *first_of_each(name)], True)
    assert run.name == name.replace("/", "-")
    assert run.claim == (name.removeprefix("claims/") if name in CLAIMS else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_as_many_runs_as_it_says(name: str, tmp_path: Path) -> None:
    seeds = sweep_of(name)["seed"].split(",")
    assert len(seeds) >= 3
    # One seed of each cell: Hydra takes 0.2 s to compose a run.
    runs = plan_sweep(compose_jobs([*words_of(name, tmp_path), f"seed={seeds[0]}"], True)).runs
    told = re.search(r"(\d+) runs", head_of(name)["Takes"])
    assert told is not None
    assert int(told[1]) == len(seeds) * len(runs) > 1


def test_every_claim_has_its_experiment() -> None:
    assert {name.removeprefix("claims/") for name in CLAIMS} == catalog.CLAIMS.keys()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_names_its_source_and_its_expected_numbers(name: str) -> None:
    head = head_of(name)
    assert re.search(r"arXiv:\d{4}\.\d{5}", head["Source"])
    assert "not measured" in head["Takes"], "no GPU has run it yet"
    assert re.search(r"\d", head["See"]) or "No number" in head["See"]
