"""An empty working folder and a clean environment for every command."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.commands import clean_environment


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory; nothing of another world in the environment."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for key in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(key)
    return folder


@pytest.fixture(scope="module")
def shared_workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that a module's tests share."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """An empty folder with a short path, for TMPDIR: sockets go there."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        yield Path(folder)
