"""The cache of files: what is unchanged is not read again, what is changed is, and a broken cache costs nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnbench.analysis.collect import collect
from bnbench.analysis.files import Files
from tests.records_factory import make_record, write


def test_what_is_unchanged_is_not_read_again(tmp_path: Path) -> None:
    paths = [write(tmp_path / "s", make_record(seed=seed)) for seed in range(3)]
    cache = tmp_path / "cache"

    def collected() -> tuple[Files, list[float]]:
        files = Files(cache)
        errors = collect([tmp_path / "s"], files).runs.sort("seed")["val_error"].to_list()
        files.save()
        return files, errors

    assert (collected()[0].read_anew, collected()[0].read_anew) == (3, 0)
    write(tmp_path / "s", make_record(seed=1, error=12.5))
    files, errors = collected()
    assert (files.read_anew, errors) == (1, [10.0, 12.5, 10.0])
    paths[0].unlink()
    files, errors = collected()
    assert (files.read_anew, errors) == (0, [12.5, 10.0])
    assert len(Files(cache)._known) == 2  # what is gone is forgotten
    cache.write_bytes(cache.read_bytes()[:100])
    files, errors = collected()
    assert (files.read_anew, errors) == (2, [12.5, 10.0])


def test_a_file_of_equal_size_that_was_written_later_is_read(tmp_path: Path) -> None:
    file, cache = tmp_path / "f", tmp_path / "c"
    file.write_text("one")
    files = Files(cache)
    assert files.read(file) == "one"
    files.save()
    file.write_text("two")
    os.utime(file, ns=(0, 123))
    assert Files(cache).read(file) == "two"


def test_what_cannot_be_read_is_said_as_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        Files().read(tmp_path / "f")
    with pytest.raises(FileNotFoundError):
        Files(tmp_path / "no" / "cache").read(tmp_path / "g")
