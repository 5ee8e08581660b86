"""What the installation rests on: the lock, the scripts, the version."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bnbench

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for path in (*(ROOT / "scripts").iterdir(), *(ROOT / ".ci").iterdir())
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)
VENDORED = [path for path in (ROOT / "bnbench" / "report" / "vendor").iterdir() if path.is_dir()]
PYTHONS = ("3.11", "3.12")


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each requirement of the lock with its hashes."""
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    parsed = []
    for entry in entries:
        if entry.strip() and not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", entry.strip())
            parsed.append((Requirement(requirement), hashes))
    return parsed


def test_the_lock_names_no_host_and_hashes_every_package() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
    for requirement, hashes in locked():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement_of_the_project(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    pins = {
        canonicalize_name(requirement.name): Version(str(requirement.specifier).removeprefix("=="))
        for requirement, _ in locked()
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    for line in asked:
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{line} is not locked: bash scripts/lock"
        assert pin in wanted.specifier, f"{line} is locked at {pin}: bash scripts/lock"


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.name)
def test_what_is_vendored_is_what_its_page_says_with_its_licence(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "://" not in page
    digests = dict(line.split()[::-1] for line in page.splitlines() if re.match(r" +[0-9a-f]{64} ", line))
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == digests
    name, version = page.splitlines()[0].removeprefix("# ").split()
    assert name == folder.name
    assert all(version.encode() in data[:200] for each, data in files.items() if each.endswith(".js"))
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    licences = [file for pattern in patterns for file in ROOT.glob(pattern)]
    assert [file for file in licences if file.parent == folder]


def test_one_version_everywhere() -> None:
    assert importlib.metadata.version("bnbench") == bnbench.__version__


def test_the_scripts_are_those_that_the_docs_name() -> None:
    assert {f"{path.parent.name}/{path.name}" for path in SCRIPTS} >= {
        ".ci/run",
        "scripts/_install",
        "scripts/lock",
        "scripts/quickstart",
        "scripts/test",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_stops_at_errors_and_knows_no_machine(script: Path) -> None:
    text = script.read_text()
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    assert "\nset -euo pipefail\n" in text
    assert not re.search(r"/(root|work)/|://\w", text)


def test_without_a_supported_python_the_installer_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    # A shim that exists and fails, as pyenv's do for a version that is not chosen.
    for name in ("python3.11", "python3.12", "python3", "python"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho not chosen >&2\nexit 127\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "_install"],
        env={
            "HOME": str(tmp_path),
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "BNBENCH_VENV": str(tmp_path / "env"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no working Python 3.11 or 3.12" in line
    assert "BNBENCH_PYTHON" in line
    assert not (tmp_path / "env").exists()


def test_the_installer_leaves_a_folder_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "_install"],
        env=os.environ | {"BNBENCH_PYTHON": sys.executable, "BNBENCH_VENV": str(tmp_path / "photos")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "photos" / "one.jpg").exists()
