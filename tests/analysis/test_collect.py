import dataclasses
import json
from pathlib import Path

import pytest

from bnbench.analysis.collect import collect
from tests.records_factory import make_record, write, write_quickstart


def test_a_row_per_run_with_the_records_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, make_record(nbs=16, seed=3, error=12.5, images_per_s=900.0))
    write(tmp_path, make_record(norm="gn", nbs=None, images_per_s=None))
    found = collect([tmp_path])
    rows = {row["norm"]: row for row in found.runs.iter_rows(named=True)}
    assert not found.problems
    assert len(found.records) == found.runs.height == 2
    bn = rows["bn"]
    assert (bn["nbs"], bn["seed"], bn["val_error"], bn["images_per_s"]) == (16, 3, 12.5, 900.0)
    assert (bn["family"], bn["path"], bn["fit_seconds"]) == ("batch", str(path), 12.5)
    gn = rows["gn"]
    assert (gn["family"], gn["nbs"], gn["images_per_s"], gn["fit_seconds"]) == ("channel", None, None, None)


def test_runs_that_differ_only_by_seed_share_a_cell(tmp_path: Path) -> None:
    write_quickstart(tmp_path)
    runs = collect([tmp_path]).runs
    assert runs.height == 15
    assert runs["cell"].n_unique() == 5
    assert runs["id"].n_unique() == 15


def _without(key: str) -> str:
    identity = {k: v for k, v in make_record().identity.items() if k != key}
    values = {"schema": 1, "id": "a", "name": "a", "identity": identity, "status": "completed", "config": {}}
    return json.dumps(values | {"metrics": {}, "timings": {}, "provenance": {}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "no bnbench record"),
        ('{"loss": 0.1}', "no bnbench record"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1}', "record.json: "),
        (_without("model"), "identity.model.name"),
        (_without("nbs"), "identity.nbs"),
    ],
)
def test_a_record_that_cannot_be_used_is_listed_and_not_fatal(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, make_record())
    bad = tmp_path / "bad" / "record.json"
    bad.parent.mkdir()
    bad.write_text(text)
    found = collect([tmp_path])
    assert found.runs.height == 1
    (problem,) = found.problems
    assert problem.startswith(str(bad))
    assert says in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("first", "second", "kept"), [("failed", "completed", "b"), ("completed", "completed", "a")]
)
def test_of_one_run_twice_the_finished_or_first_is_kept(
    tmp_path: Path, first: str, second: str, kept: str
) -> None:
    paths = {
        "a": write(tmp_path / "a", make_record(status=first)),  # type: ignore[arg-type]
        "b": write(tmp_path / "b", make_record(status=second)),  # type: ignore[arg-type]
    }
    found = collect([tmp_path])
    assert found.runs["path"].to_list() == [str(paths[kept])]
    assert len(found.problems) == 1
    assert all(str(path) in found.problems[0] for path in paths.values())
    assert found.sides.is_empty()
    # Of two folders that are named each by itself, it is a side of both.
    found = collect([tmp_path / "a", tmp_path / "b"])
    assert found.runs["path"].to_list() == [str(paths[kept])]
    assert found.problems == []
    assert found.sides["path"].to_list() == [str(path) for path in paths.values()]
    assert found.sides["root"].to_list() == [str(tmp_path / name) for name in paths]


def test_a_folder_inside_another_is_not_read_twice(tmp_path: Path) -> None:
    write(tmp_path / "sweep", make_record())
    found = collect([tmp_path, tmp_path / "sweep"])
    assert found.runs.height == 1
    assert not found.problems


def test_a_norm_of_another_version_is_still_a_result(tmp_path: Path) -> None:
    write(tmp_path, make_record(norm="frn", nbs=None))
    assert collect([tmp_path]).runs["family"].to_list() == ["channel"]


def test_completed_without_an_error_is_told(tmp_path: Path) -> None:
    write(tmp_path, make_record(error=None))
    found = collect([tmp_path])
    assert found.runs["val_error"].to_list() == [None]
    assert "final_val_error" in found.problems[0]


def test_no_folder_and_no_record_are_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for root, says in (
        (tmp_path / "none", "does not exist"),
        (file, "is a file"),
        (tmp_path, "no record.json"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            collect([root])
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ValueError, match="no usable record"):
        collect([tmp_path])


def test_the_title_that_a_run_gave_its_data_is_what_all_runs_on_them_are_said_to_be_on(
    tmp_path: Path,
) -> None:
    for seed, title in ((0, None), (1, "mine"), (2, "mine, too")):
        made = make_record(seed=seed)
        write(tmp_path, dataclasses.replace(made, config=made.config | {"data": {"title": title}}))
    write(tmp_path, make_record(data="cifar10"))
    runs = collect([tmp_path]).runs
    assert sorted(runs["data"]) == ["cifar10", "mine", "mine", "mine"]
    assert runs["cell"].n_unique() == 2
