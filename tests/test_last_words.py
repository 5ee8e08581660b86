"""The exit code that a starter reads, and the commands that a person copies."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bnbench import train
from bnbench.compose import compose_jobs
from bnbench.last_words import last_words
from bnbench.launch import Place
from bnbench.records import write_record
from bnbench.sweep.options import PoolOptions
from bnbench.sweep.outcome import Outcome
from bnbench.sweep.plan import Plan, plan_sweep
from tests.records_factory import make_record, record_of

PLACES = {
    "bnbench train": None,
    "srun bnbench train": Place(0, 4, 0, 2, "srun"),
    "torchrun --nproc-per-node 2 -m bnbench.train": Place(0, 2, 0, 2, "torchrun"),
    "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT --nproc-per-node 2 -m bnbench.train": Place(
        0, 4, 0, 2, "torchrun"
    ),
}


def _code(
    folder: Path,
    statuses: list[str | None],
    stopped: int | None = None,
    earlier: bool = False,
    sweep: bool = False,
) -> int:
    """The exit code of a sweep whose runs came to these statuses; None: not begun."""
    seeds = ",".join(str(seed) for seed in range(len(statuses)))
    runs = compose_jobs([f"dir={folder}", f"seed={seeds}", "logger=none"], multirun=True)
    for run, status in zip(runs, statuses, strict=True):
        if status in ("completed", "diverged", "failed", "oom", "timeout", "preempted"):
            write_record(run.folder, make_record(status=status))  # type: ignore[arg-type]
    outcomes = [
        Outcome(run, status, "why", earlier and status == "oom")
        for run, status in zip(runs, statuses, strict=True)
        if status is not None
    ]
    return last_words(Plan(todo=runs), outcomes, [], sweep, stopped)


CODES = [  # what became of the runs, the signal that was heard, the exit code
    (["completed", "diverged"], None, 0),
    (["completed"], 143, 0),  # it came too late to keep anything from being done
    (["completed", "failed"], None, 1),
    (["completed", "refused"], None, 2),
    (["failed", "refused"], None, 1),
    (["completed", "elsewhere"], None, 75),
    (["elsewhere", "refused"], None, 75),
    (["elsewhere", "oom"], None, 1),
    (["preempted", "failed", None], 143, 143),
    (["refused", None], 143, 143),
    (["completed", "preempted"], 130, 130),
    (["elsewhere", None], 130, 130),
    (["completed", "preempted"], None, 143),  # another rank heard it
    (["failed", None], None, 143),
]


@pytest.mark.parametrize(("statuses", "stopped", "code"), CODES, ids=str)
def test_the_exit_code_says_what_a_starter_has_to_do(tmp_path: Path, statuses, stopped, code) -> None:
    assert _code(tmp_path, statuses, stopped) == code


def test_what_broke_in_an_earlier_start_is_told_and_does_not_count(tmp_path: Path, capsys) -> None:
    assert _code(tmp_path / "a", ["completed", "oom"], earlier=True) == 0
    assert "oom in an earlier start of this job: why" in capsys.readouterr().err
    assert _code(tmp_path / "b", ["failed", "oom"], earlier=True) == 1
    assert _code(tmp_path / "c", ["refused", "oom"], earlier=True) == 2


def test_what_was_refused_is_not_offered_again_as_it_is(tmp_path: Path, capsys) -> None:
    _code(tmp_path / "a", ["completed", "refused"], sweep=True)
    told = capsys.readouterr().out
    missing = (
        "Missing: 1 of 2 run(s): 1 did not start. Mend first what is said above of those that did not start"
    )
    assert f"{missing}.\n" in told and "same command" not in told
    assert "narrower intervals" not in told and "your own images" in told
    _code(tmp_path / "b", ["failed", "refused"])
    told = capsys.readouterr().out
    assert (
        "above of those that did not start; the same command trains the other 1:\n  bnbench train\n" in told
    )
    _code(tmp_path / "c", ["failed", "oom"])
    assert "1 failed, 1 oom. The same command trains just these:\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["image_folder", "imagenet", "custom"])
def test_whoever_has_their_own_images_is_not_sent_to_them(tmp_path: Path, capsys, kind: str) -> None:
    for split in ("train", "test", "val"):
        (tmp_path / split).mkdir()
    words = [f"data={kind}", f"data.root={tmp_path}"]
    if kind == "custom":
        words = ["data=custom", "data.name=tests.records_factory.anything"]
    runs = compose_jobs([f"dir={tmp_path}", *words, "logger=none", "seed=0,1,2,3,4"], multirun=True)
    for run in runs:
        write_record(run.folder, record_of(run))
    last_words(Plan(finished=runs), [Outcome(run, "completed") for run in runs], ["-m", *words], True, None)
    assert "Next:" not in capsys.readouterr().out


def _suggested(folder: Path, capsys, argv: list[str], seeds: str) -> list[str]:
    runs = compose_jobs([f"dir={folder}", f"seed={seeds}", "logger=none", "norm=bn,gn"], multirun=True)
    for run in runs:
        write_record(run.folder, record_of(run))
    outcomes = [Outcome(run, "completed") for run in runs]
    assert last_words(Plan(finished=runs), outcomes, argv, True, None) == 0
    return re.findall(r"^  (\S.*)$", capsys.readouterr().out.partition("\nNext:")[2], re.MULTILINE)


@pytest.mark.parametrize("starter", PLACES)
def test_a_suggested_command_is_the_one_that_was_given_with_other_seeds(
    tmp_path: Path, capsys, monkeypatch, starter: str
) -> None:
    monkeypatch.setattr("bnbench.last_words.place_given", lambda: PLACES[starter])
    argv = ["-m", "norm=bn,gn", "--config-dir", "data of mine", "seed=3,7", "data=digits", "name=x"]
    more, other = _suggested(tmp_path, capsys, argv, "3,7")
    start = shlex.split(starter)
    assert shlex.split(more) == [
        *start, "-m", "norm=bn,gn", "--config-dir", "data of mine", "data=digits", "name=x", "seed=3,7,0,1,2",
    ]  # fmt: skip
    assert shlex.split(other) == [
        *start, "-m", "norm=bn,gn", "--config-dir", "data of mine",
        "data=image_folder", "data.root=FOLDER", "name=my-images",
    ]  # fmt: skip


def test_no_fewer_seeds_are_offered_than_there_are(tmp_path: Path, capsys) -> None:
    (only,) = _suggested(tmp_path, capsys, ["-m", "norm=bn,gn"], "0,1,2,3,4,5,6,7")
    assert "seed=" not in only


def test_what_is_missing_is_asked_for_the_way_the_ranks_were_started(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("bnbench.last_words.place_given", lambda: PLACES["srun bnbench train"])
    assert _code(tmp_path, ["failed"]) == 1
    assert "\n  srun bnbench train\n" in capsys.readouterr().out


def test_all_batches_of_a_sweep_count_in_the_end(tmp_path: Path, monkeypatch) -> None:
    """Hydra calls a launcher once for each batch (hydra.sweeper.max_batch_size, a sweeper that chooses as it goes)."""
    jobs = compose_jobs([f"dir={tmp_path}", "seed=0,1", "logger=none"], multirun=True)
    monkeypatch.setattr("bnbench.compose.check", lambda job: job)

    def run_all(plan: Plan, *_: Any) -> list[Outcome]:
        return [Outcome(run, "failed" if run.seed == 0 else "completed") for run in plan.todo]

    monkeypatch.setattr("bnbench.sweep.pool.run_all", run_all)
    application = train.Application()
    for job in jobs:
        application.sweep([job], PoolOptions())
    assert application.plan is not None
    assert [run.folder for run in application.plan.runs] == [run.folder for run in plan_sweep(jobs).runs]
    assert [outcome.status for outcome in application.outcomes] == ["failed", "completed"]


def test_a_bug_of_the_report_costs_the_last_words_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("bnbench.report.build", broken)
    assert _code(tmp_path, ["completed", "completed"], sweep=True) == 0
    told = capfd.readouterr()
    assert "the records are kept: bnbench report" in told.out and "Next:" in told.out
    assert "RuntimeError: a bug" in told.err
