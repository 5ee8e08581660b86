"""Where a number comes from: the commit, and whether the code that ran is that commit's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bnbench
from bnbench.provenance import WHAT_TRAINS, git_state


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A repository with a package of one file, committed."""
    folder = tmp_path / "bnbench"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        who = ["-c", "user.name=A", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)
    return folder


def test_only_what_runs_makes_a_commit_dirty(package: Path) -> None:
    clean = git_state(package)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (package.parent / "sweep.log").touch()
    (package.parent / "docs").mkdir()
    (package.parent / "docs" / "page.md").touch()
    assert git_state(package) == clean
    (package / "mine.py").touch()  # untracked, but imported all the same
    assert git_state(package)["dirty"] is True
    (package / "mine.py").unlink()
    (package.parent / "conf").mkdir()
    (package.parent / "conf" / "mine.yaml").touch()
    assert git_state(package)["dirty"] is True


def test_outside_of_its_checkout_there_is_no_commit(package: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages" / "bnbench"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert git_state(installed) == {"commit": None, "dirty": None}


def test_a_git_that_gives_no_answer_is_not_a_clean_one(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run

    def slow(words: list[str], **options: Any) -> Any:
        if "status" in words:
            raise subprocess.TimeoutExpired(words, 10)
        return real(words, **options)

    monkeypatch.setattr(subprocess, "run", slow)
    found = git_state(package)
    assert len(found["commit"]) == 40 and found["dirty"] is None


FORKED = """
import json, multiprocessing, pathlib, sys
package = pathlib.Path(sys.argv[1]) / "bnbench"

def told():
    from bnbench.provenance import provenance
    found = provenance()
    return found["code"], found["git"]

def answer(pipe):
    pipe.send(told())

if __name__ == "__main__":
    from bnbench.sweep.spawned import PRELOAD
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD[:2])  # without torch, which the third imports
    found = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=answer, args=(theirs,)).start()
        found.append(ours.recv())
        (package / "norms" / "edited.py").write_text("# while the sweep runs")
    print(json.dumps(found))
"""


def test_a_rank_tells_of_the_code_that_its_server_has_imported(tmp_path: Path) -> None:
    """A file that is edited in the midst of a sweep is in no rank's memory, and in no record."""
    shutil.copytree(
        Path(bnbench.__file__).parent, tmp_path / "bnbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        who = ["-c", "user.name=A", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "forked.py").write_text(FORKED)
    done = subprocess.run(
        [sys.executable, "forked.py", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},  # it would be a change
    )  # fmt: skip
    first, second = json.loads(done.stdout)
    assert first == second and first[1]["dirty"] is False


def test_what_decides_how_a_run_trains_is_told_apart() -> None:
    """Of the files of bnbench that the code which trains reads, those that say what is trained."""
    assert {"catalog.py", "config", "span.py"} <= set(WHAT_TRAINS)
