"""`bnbench report --wandb`: one report for one name, drawn of curve runs that the server gets once.

`pytest tests/report/test_wandb_report.py --write-golden` writes wandb_report.json, the report's spec, anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb

from bnbench import wandb_run
from bnbench.analysis.answer import Answer, CellView, Interval, Panel
from bnbench.records import Record, cell_of, digest
from bnbench.report import wandb_report
from bnbench.report.wandb_blocks import NOT_THERE
from bnbench.report.wandb_curves import AXIS, ERROR, HIGH, LOW, MEAN, curve_runs
from bnbench.report.wandb_report import Posted, add_options, publish
from tests.records_factory import make_record
from tests.wandb_stub import StubReport, StubRun, WandbStub

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of wandb-workspaces, of its own pydantic

GOLDEN = Path(__file__).with_name("wandb_report.json")
GROUP = 'it\'s "one"'  # a user's own, quotes and all
ERRORS = {2: (31.0, 34.5, 29.8), 4: (19.0, 20.2, 18.1), 16: (12.4, 12.0, 13.1)}


@pytest.fixture
def server(wandb_server: WandbStub, monkeypatch: pytest.MonkeyPatch) -> WandbStub:
    monkeypatch.setattr(wandb_run, "API_SECONDS", 2)
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 2)  # what wandb-workspaces asks with
    monkeypatch.setattr(wandb_report, "INIT_SECONDS", 3.0)
    monkeypatch.setattr(wandb_report, "FINISH_SECONDS", 3.0)
    return wandb_server


def make_records(*, seeds: int = 3, sizes: Sequence[int] = (2, 4, 16)) -> list[Record]:
    """BN at some NBS, one of its runs diverged, and GN; of a sweep that was logged nowhere."""
    runs = [make_record(nbs=nbs, seed=s, error=e) for nbs in sizes for s, e in enumerate(ERRORS[nbs][:seeds])]
    runs[0] = make_record(nbs=sizes[0], seed=0, status="diverged")
    runs += [
        make_record(norm="gn", nbs=None, seed=s, error=e) for s, e in enumerate((13.0, 13.9, 12.7)[:seeds])
    ]
    for run in runs:
        run.config |= {"name": "s", "logger": {"project": "norms", "entity": None, "group": GROUP}}
    return runs


def answer_to(records: Iterable[Record], **changes: Any) -> Answer:
    """What a page would say of some records, its intervals made up."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(digest(cell_of(record.identity)), []).append(record)
    views = tuple(_view(key, runs) for key, runs in cells.items())
    lost = CellView("lost", "b", "bn | 0.9", "bn", 1, "ghost", {}, None, (), {"diverged": 3})
    panels = (
        Panel("a", "resnet8 on digits", views, sentences=("At NBS 2, gn beats bn.", "1 < 2 | [3, 4].")),
        Panel("b", "preact20 on digits", (lost,)),
    )
    return Answer(**{"title": "bn and gn on digits", "panels": panels} | changes)


def _view(key: str, runs: Sequence[Record]) -> CellView:
    identity = runs[0].identity
    norm, nbs = identity["norm"]["name"], identity["nbs"]
    errors = tuple(run.metrics["final_val_error"] for run in runs if run.status == "completed")
    error = None
    if errors:
        mean, half = statistics.mean(errors), max(errors) - min(errors)
        wide = len(errors) > 1
        error = Interval(mean, mean - half if wide else None, mean + half if wide else None, len(errors))
    counts = {status: sum(run.status == status for run in runs) for status in {run.status for run in runs}}
    return CellView(key, "a", norm, norm, nbs, nbs and "ghost", {}, error, errors, counts)


def post(records: Sequence[Record], **given: Any) -> Posted:
    return publish(answer_to(records), records, **given)


def the_report(server: WandbStub) -> StubReport:
    (report,) = server.reports.values()
    return report


def rows_of(run: StubRun) -> dict[int, dict[str, float]]:
    """By NBS; each is there once."""
    assert len({row[AXIS] for row in run.rows}) == len(run.rows), f"a row twice: {run.rows}"
    return {row[AXIS]: {k: v for k, v in row.items() if k in (ERROR, MEAN, LOW, HIGH)} for row in run.rows}


def shown(server: WandbStub) -> dict[str, dict[int, dict[str, float]]]:
    """The rows of the curve runs that the report names, by the names of the runs."""
    grids = [block["metadata"] for block in the_report(server).spec["blocks"] if "metadata" in block]
    filters = [f for grid in grids for runset in grid["runSets"] for f in runset["filters"]["filters"]]
    runs = [server.runs[key] for f in filters if f["key"]["name"] == "name" for key in f["value"]]
    found = {run.attributes["displayName"]: rows_of(run) for run in runs}
    assert len(found) == len(runs)
    return found


def wanted(records: Sequence[Record]) -> dict[str, dict[int, dict[str, float]]]:
    return {run.name: dict(run.rows) for run in curve_runs(answer_to(records), records)}


def stripped(spec: Any) -> Any:
    """A spec without the ids of its blocks, runsets and panels, which are random."""
    if isinstance(spec, dict):
        return {key: stripped(value) for key, value in spec.items() if key not in ("id", "__id__")}
    return [stripped(value) for value in spec] if isinstance(spec, list) else spec


def trained_run(server: WandbStub, group: str = GROUP) -> None:
    """A training run in the report's project, as `bnbench train` online or `bnbench sync` leaves one."""
    run = server._run("norms", "trained")
    run.attributes |= {"jobType": "train", "group": group}
    server._project("norms")


def test_the_spec_is_the_golden_one(server: WandbStub, request: pytest.FixtureRequest) -> None:
    records = make_records()
    trained_run(server)
    records[0].provenance["device"] = {"type": "cuda", "name": "made up"}
    for record in records:
        record.identity["data"]["label"] = "synthetic data: throughput only"
    post(records)
    report = the_report(server)
    made = {**report.attributes, "project": report.project, "spec": stripped(report.spec)}
    made = {key: made[key] for key in ("project", "displayName", "description", "type", "spec")}
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    assert made == json.loads(GOLDEN.read_text())


def test_each_curve_run_has_its_records_errors_and_each_line_its_interval(server: WandbStub) -> None:
    records = make_records()
    posted = post(records)
    assert posted == Posted(posted.url, new=True, sent=8, of=8)
    found = shown(server)
    assert found == wanted(records)
    for record in records:
        norm, nbs, seed = record.identity["norm"]["name"], record.identity["nbs"], record.identity["seed"]
        rows = found[f"{norm} s{seed}"]
        if record.status != "completed":
            assert nbs not in rows
        else:
            sizes = [nbs] if nbs else list(ERRORS)  # a norm without NBS is as good at each
            assert all(rows[size] == {ERROR: record.metrics["final_val_error"]} for size in sizes)
    for cell in answer_to(records).panels[0].cells:
        assert cell.error is not None
        ends = {MEAN: cell.error.mean, LOW: cell.error.low, HIGH: cell.error.high}
        assert found[f"{cell.line} mean"][cell.nbs or 2] == ends
    for run in server.runs.values():
        assert (run.project, run.attributes["jobType"], run.attributes["group"], run.state) == (
            "norms", "curve", "s", "finished",
        )  # fmt: skip
        assert run.config["norm"] == run.config["line"] == run.attributes["displayName"].split()[0]


def test_the_same_again_sends_nothing_and_updates_the_one_report(server: WandbStub) -> None:
    records = make_records(seeds=2)
    first = post(records)
    report = the_report(server)
    before = copy.deepcopy(report.spec)
    report.attributes["displayName"] = "My own title"
    server.requests.clear()
    again = post(records)
    assert (again.new, again.sent) == (False, 0)
    assert again.url.rpartition("--")[2] == first.url.rpartition("--")[2]
    assert not {"UpsertBucket", "file_stream"} & set(server.requests)
    assert stripped(the_report(server).spec) == stripped(before)
    assert report.attributes["displayName"] == "My own title"
    publish(answer_to(records, title="another answer"), records)
    assert "another answer" in the_report(server).attributes["spec"]


def test_reports_of_other_names_and_of_people_are_left_alone(server: WandbStub) -> None:
    server._project("norms")
    given = {
        "projectName": "norms",
        "name": "n",
        "displayName": "bnbench s",
        "description": "Mine",
        "type": "runs",
    }
    server._upsert_view(given | {"spec": "{}"})
    records = make_records(seeds=1)
    ours = post(records)
    other = post(records, name="another name")
    assert ours.new and other.new and ours.url != other.url
    assert len(server.reports) == 3
    assert next(iter(server.reports.values())).attributes["description"] == "Mine"


def test_more_seeds_and_sizes_add_to_what_is_there(server: WandbStub) -> None:
    """A seed's rows stay; a mean that has changed is another run, since history cannot be taken back."""
    few = make_records(seeds=2, sizes=(4, 16))
    post(few)
    before = {key: copy.deepcopy(run.rows) for key, run in server.runs.items()}
    many = make_records(seeds=3, sizes=(4, 16))
    assert post(many).sent == 2 + 2  # a third seed of each norm, both means
    assert shown(server) == wanted(many)
    wider = [*many, *make_records()[1:3]]  # BN at NBS 2
    posted = post(wider)
    assert shown(server) == wanted(wider)
    assert posted.sent == posted.of - 1, "each line has a new place but BN's first seed, which diverged there"
    assert len(server.runs) == 6 + 4, "the new places are new rows of the same runs"
    for key, rows in before.items():
        assert server.runs[key].rows[: len(rows)] == rows


def test_a_run_that_was_trained_anew_is_a_new_edition(server: WandbStub) -> None:
    records = make_records(seeds=2)
    post(records)
    old = set(server.runs)
    records[-1].metrics["final_val_error"] += 1
    assert post(records).sent == 2  # the seed, and the mean
    assert shown(server) == wanted(records)
    assert {key.rpartition("-")[2] for key in set(server.runs) - old} == {"1"}


def test_what_was_deleted_on_the_server_is_sent_under_another_id(server: WandbStub) -> None:
    records = make_records(seeds=1)
    post(records)
    server.deleted = set(server.runs)
    server.runs.clear()
    assert post(records).sent == 4
    assert shown(server) == wanted(records)
    assert post(records).sent == 0


@pytest.mark.parametrize("lost_at", ["rows", "upsertView"])
def test_a_server_lost_in_the_middle_is_one_line_and_the_same_again_mends_it(
    server: WandbStub, lost_at: str
) -> None:
    records = make_records(seeds=2)
    if lost_at == "rows":
        server.lost_after = 3  # in the first run
    else:
        server.lost_at = lost_at  # it has the report and has not said so
    with pytest.raises(
        ValueError, match=r"W&B at \S+ does not answer .*: nothing is lost: the same .*goes on"
    ) as raised:
        post(records)
    assert len(str(raised.value).splitlines()) == 1
    server.start()
    posted = post(records)
    assert posted.new == (lost_at == "rows")
    assert shown(server) == wanted(records)
    assert len(server.runs) == posted.of
    for run in server.runs.values():
        rows_of(run)


def test_a_run_that_has_a_part_of_its_rows_gets_the_others(server: WandbStub) -> None:
    records = make_records(seeds=1)
    post(records)
    run = next(run for run in server.runs.values() if run.attributes["displayName"] == "gn s0")
    del run.files["wandb-history.jsonl"][2]
    assert post(records).sent == 1
    assert shown(server) == wanted(records)


def test_training_curves_are_shown_where_their_runs_are_in_the_project(server: WandbStub) -> None:
    records = make_records(seeds=1)
    trained_run(server, group="another sweep")
    post(records)
    assert NOT_THERE in the_report(server).attributes["spec"]
    trained_run(server)
    post(records)
    spec = the_report(server).attributes["spec"]
    assert NOT_THERE not in spec and "system/cpu" in spec and "gpu.0" not in spec


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no key", "there is no W&B key here: wandb login"),
        ("wrong key", "refuses the key .*: wandb login --relogin"),
        ("stopped", "does not answer .*the same command again goes on"),
        ("slow", "does not answer .*the same command again goes on"),
        ("no such entity", "entity nobody not found.*: name an --entity and --project of this key"),
        ("not installed", "which is not installed here: pip install wandb-workspaces"),
        ("two projects", r"more than one W&B project \(norms, others\).*: name it by --project"),
        ("two entities", r"more than one W&B entity \(me, you\).*: name it by --entity"),
        ("nothing completed", "has nothing to draw: no run of these records completed"),
    ],
)
def test_a_mistake_is_one_line(
    server: WandbStub, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    records, given = make_records(seeds=1), {}
    answer = answer_to(records)
    match fault:
        case "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        case "wrong key":
            server.wrong_key = True
        case "stopped":
            server.stop()
        case "slow":
            server.delay = 20.0
        case "no such entity":
            given = {"entity": "nobody"}
        case "not installed":
            monkeypatch.setattr(wandb_report, "find_spec", lambda name: None)
        case "two projects":
            records[0].config["logger"]["project"] = "others"
        case "two entities":
            records[0].config["logger"]["entity"], records[1].config["logger"]["entity"] = "me", "you"
        case "nothing completed":
            answer = Answer("t", answer.panels[1:])
    with pytest.raises(ValueError, match=told) as raised:
        publish(answer, records, **given)
    assert len(str(raised.value).splitlines()) == 1
    assert not server.reports


def test_norms_without_nbs_alone_are_drawn_at_one() -> None:
    records = [run for run in make_records() if run.identity["nbs"] is None]
    runs = curve_runs(answer_to(records), records)
    assert len(runs) == 4
    assert all(list(run.rows) == [1] for run in runs)


def test_one_seed_has_no_interval() -> None:
    records = make_records(seeds=1)
    means = [run for run in curve_runs(answer_to(records), records) if run.seed is None]
    assert means and all(set(row) == {MEAN} for run in means for row in run.rows.values())


def test_the_name_says_which_sweeps_and_fits() -> None:
    records = make_records()
    assert wandb_report.sweep_names(records) == "s"
    for index, record in enumerate(records):
        record.config["name"] = f"{index:02}-" + "x" * 70
    assert wandb_report.sweep_names(records) == f"00-{'x' * 70} and {len(records) - 1} more"


def test_the_options_parse_and_nothing_heavy_is_imported() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = parser.parse_args(["--wandb", "--project", "p", "--entity", "e"])
    assert (given.wandb, given.project, given.entity) == (True, "p", "e")
    code = (
        "import sys; import bnbench.report.wandb_report;"
        "assert not {'torch', 'wandb', 'wandb_workspaces', 'polars', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
