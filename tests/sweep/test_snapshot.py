"""The code that a submission's jobs run: a copy of what was there, and of nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bnbench import provenance
from bnbench.sweep.slurm import CODE
from bnbench.sweep.snapshot import LARGEST_FILE, MOST_FILES, freeze


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's own, that can be found."""
    folder = tmp_path / "place" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("VALUE = 'then'\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def copied(code: Path) -> set[str]:
    return {str(path.relative_to(code / "mine")) for path in (code / "mine").rglob("*") if path.is_file()}


def test_code_and_small_files_are_copied_and_nothing_hidden_or_large(package: Path, tmp_path: Path) -> None:
    wanted = ["__init__.py", "table.json", "deep/layers.py", "deep/kernel.so", "settings/one.yaml"]
    left_out = [".env", ".git/config", "deep/.secret", "deep/__pycache__/layers.pyc", "weights.pt"]
    left_out += [f"images/{number}.png" for number in range(MOST_FILES + 1)]
    for name in (*wanted, *left_out):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("# nothing\n")
    (package / "deep/kernel.so").write_bytes(bytes(LARGEST_FILE + 1))  # code, whatever its size
    (package / "weights.pt").write_bytes(bytes(LARGEST_FILE + 1))
    assert copied(freeze(tmp_path / CODE, ["mine"])) == set(wanted)


def test_links_end(package: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").touch()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").touch()
    (package / "gone").symlink_to(tmp_path / "nowhere")
    (package / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (package / "itself").symlink_to(package)
    (package / "data").symlink_to(tmp_path / "data")
    (package / "shared").symlink_to(tmp_path / "shared")
    assert copied(freeze(tmp_path / CODE, ["mine"])) == {"__init__.py", "shared/__init__.py"}


def test_runs_that_lie_in_the_package_are_no_code(package: Path) -> None:
    sweep = package / "runs" / "s"
    (sweep / "a-run").mkdir(parents=True)
    (sweep / "a-run" / "record.json").write_text("{}")
    assert copied(freeze(sweep / ".submissions/1/code", ["mine"], output=sweep)) == {"__init__.py"}


@pytest.mark.parametrize("place", ["site-packages", "dist-packages"])
def test_what_is_installed_is_not_copied_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A user's site, or an environment module's folder on PYTHONPATH."""
    folder = tmp_path / "lib" / place / "theirs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    assert not (freeze(tmp_path / CODE, ["theirs"]) / "theirs").exists()


def test_the_copy_runs_by_itself_and_knows_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("VALUE = 'then'\n")
    (tmp_path / "single.py").write_text("VALUE = 'then'\n")
    monkeypatch.syspath_prepend(tmp_path)
    code = freeze(tmp_path / CODE, ["mine", "single", "torch", "json"])
    assert sorted(path.name for path in code.iterdir()) == [
        "bnbench",
        "conf",
        "hydra_plugins",
        "mine",
        "single.py",
    ]
    (tmp_path / "mine/__init__.py").write_text("VALUE = 'now'\n")
    (tmp_path / "bnbench.py").write_text("raise SystemExit('the folder that the job starts in')\n")
    look = (
        "import bnbench, mine, single, json, sys; from bnbench import provenance as p; from pathlib import Path; "
        "from bnbench.folders import config_folder; "
        "print(json.dumps([bnbench.__file__, mine.VALUE, str(config_folder()), p.git_state(Path(p.__file__).parent), "
        "p.git_state(Path(p.__file__).parent / 'training'), p.code_digest()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    known = provenance.git_state(Path(provenance.__file__).parent)
    assert json.loads(done.stdout) == [
        str(code / "bnbench/__init__.py"), "then", str(code / "conf"), known, known, provenance.code_digest(),
    ]  # fmt: skip
