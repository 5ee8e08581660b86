"""Where a number comes from: the commit, and whether the code that ran is that commit's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bnbench.provenance import git_state


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
