"""A user's own file, edited while a sweep is under way: what ran is what its record says."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnbench import dotted
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig

NORM = "from torch.nn import BatchNorm2d as Mine\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of this test's own in the working directory, forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / f"mine_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(NORM)
    yield path
    sys.modules.pop(path.stem, None)


def _job(file: Path, group: str = "norm") -> RunConfig:
    return compose_jobs([f"{group}=custom", f"{group}.name={file.stem}.Mine"])[0]


@pytest.mark.parametrize("group", ["norm", "model"])
def test_a_run_keeps_its_folder_while_its_file_is_edited_or_removed(file: Path, group: str) -> None:
    job = _job(file, group)
    planned = job.folder
    file.write_text(NORM + "# a thought\n")
    assert _job(file, group).folder != planned, "a new command sees another run"
    assert job.folder == pickle.loads(pickle.dumps(job)).folder == planned
    file.unlink()
    assert job.folder == pickle.loads(pickle.dumps(job)).folder == planned


def test_weights_and_images_are_those_of_the_plan(tmp_path: Path) -> None:
    weights, root = tmp_path / "weights.pt", tmp_path / "images"
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        (root / split / "a" / "1.png").touch()
    weights.write_bytes(b"first")
    words = ["data=image_folder", f"data.root={root}", "data.image_size=32", f"model.weights={weights}"]
    job = compose_jobs(words)[0]
    planned = job.folder
    weights.write_bytes(b"second")
    (root / "train" / "a" / "2.png").touch()
    assert _in_another_process(job) == str(planned)


def _in_another_process(job: RunConfig) -> str:
    """A rank has read none of the files, and its caches are empty."""
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).folder)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(job), capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def test_code_that_is_in_memory_goes_by_the_file_that_it_was(file: Path) -> None:
    job = _job(file)
    dotted.check_unchanged("norm.name", job.norm.name, job.norm.source)  # imports it
    file.write_text(NORM + "# a thought\n")
    dotted.check_unchanged("norm.name", job.norm.name, job.norm.source)
    later = _job(file)
    with pytest.raises(
        ValueError, match=r"^norm\.name=mine_.*: its file was changed .* start the command again$"
    ):
        dotted.check_unchanged("norm.name", later.norm.name, later.norm.source)


def test_a_world_that_starts_after_an_edit_does_not_train_for_the_plan_before_it(file: Path) -> None:
    job = _job(file)
    file.write_text(NORM + "# a thought\n")
    with pytest.raises(ValueError, match="its file was changed"):
        dotted.check_unchanged("norm.name", job.norm.name, job.norm.source)
