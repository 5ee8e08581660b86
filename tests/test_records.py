"""A record is there whole or not at all, and reads as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnbench.records import (
    FINISHED,
    FOREIGN,
    RECORD,
    Record,
    cell_of,
    digest,
    find_records,
    finished_status,
    is_finished,
    read_record,
    write_atomic,
    write_record,
)
from bnbench.sweep.standing import standing
from tests.records_factory import make_record

STATUSES = ["completed", "diverged", "oom", "timeout", "preempted", "failed"]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
identities = st.dictionaries(st.text(), scalars | st.dictionaries(st.text(), scalars, max_size=3), max_size=6)


def test_a_record_reads_as_it_was_written(tmp_path):
    record = make_record(norm="gn", nbs=None)
    path = write_record(tmp_path / "deep" / "run", record)
    assert read_record(path) == record
    assert list(find_records(tmp_path)) == [path]
    assert path.stat().st_mode & 0o777 == 0o644, "others of a cluster's group may read it"


@settings(max_examples=50, deadline=None)
@given(identities, st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_key_order(identity, random):
    keys = list(identity)
    random.shuffle(keys)
    assert digest({key: identity[key] for key in keys}) == digest(identity)
    assert digest(identity, 64).startswith(digest(identity))


@settings(max_examples=50, deadline=None)
@given(identities, st.text(), scalars)
def test_a_digest_tells_values_apart(identity, key, value):
    changed = identity | {key: value}
    same = json.dumps(changed, sort_keys=True) == json.dumps(identity, sort_keys=True)
    assert (digest(changed, 64) == digest(identity, 64)) == same


def test_a_cell_is_an_identity_without_its_seed():
    first, second = make_record(seed=0).identity, make_record(seed=1).identity
    assert cell_of(first) == cell_of(second)
    assert cell_of(first).keys() == first.keys() - {"seed"}
    assert "seed" in first, "cell_of copies"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    def fail(*_args, **_kwargs):
        raise OSError("no space left")

    path = write_record(tmp_path, make_record(seed=0))
    before = path.read_bytes()
    monkeypatch.setattr(*(("os.fsync", fail) if moment == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="no space"):
        write_record(tmp_path, make_record(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]
    assert path.read_bytes() == before


def test_what_json_cannot_say_is_not_written(tmp_path):
    """NaN is no JSON: a reader elsewhere would stop at it."""
    record = make_record()
    record.metrics["final_val_loss"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, record)
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_the_whole_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"long" * 1000)
    write_atomic(path, b"short")
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("status", STATUSES)
def test_what_would_come_out_the_same_is_finished(tmp_path, status):
    assert not is_finished(tmp_path)
    write_record(tmp_path, make_record(status=status))
    assert is_finished(tmp_path) == (status in ("completed", "diverged")) == (status in FINISHED)


def _broken(change) -> str:
    values = dataclasses.asdict(make_record())
    change(values)
    return json.dumps(values)


BROKEN = {
    "empty": ("", "not readable as JSON"),
    "half written": (json.dumps(dataclasses.asdict(make_record()))[:200], "not readable as JSON"),
    "not text": (b"\xff\xfe\x00", "not readable as JSON"),
    "a list": ("[]", "no schema"),
    "another tool's": ('{"loss": 1}', "no schema"),
    "without a status": (_broken(lambda v: v.pop("status")), "status"),
    "of an unknown status": (_broken(lambda v: v.update(status="fine")), "status"),
    "with a wrong type": (_broken(lambda v: v.update(metrics=[1])), "metrics"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_one_line_with_its_path_and_not_finished(tmp_path, case):
    text, message = BROKEN[case]
    path = tmp_path / RECORD
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not is_finished(tmp_path)


def test_a_record_of_another_schema_is_kept_by_all_who_look(tmp_path):
    """Where a plan keeps it, the queue, the run and the last words do: none trains over it."""
    (tmp_path / RECORD).write_text(_broken(lambda v: v.update(schema=2)))
    with pytest.raises(ValueError, match=r"schema 2.* reads schema 1"):
        read_record(tmp_path / RECORD)
    assert standing(tmp_path)[0] == "finished"
    assert finished_status(tmp_path) == FOREIGN and is_finished(tmp_path)


def test_a_newer_writer_may_add_keys(tmp_path):
    path = write_record(tmp_path, make_record())
    values = json.loads(path.read_text()) | {"later": 1}
    path.write_text(json.dumps(values))
    assert isinstance(read_record(path), Record)


def test_a_record_from_before_health_signals_has_none(tmp_path):
    path = write_record(tmp_path, make_record())
    values = json.loads(path.read_text())
    del values["health"]
    path.write_text(json.dumps(values))
    assert read_record(path).health == {}


def test_records_are_found_where_a_folder_goes_in_the_meantime(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_record(tmp_path / name, make_record())
        (tmp_path / name / "checkpoints").mkdir()
    look = os.scandir

    def scandir(path):
        if str(path).endswith("a/checkpoints"):
            raise FileNotFoundError(path)
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [path.parent.name for path in find_records(tmp_path)] == ["a", "b"]
