"""What a sweep will run and what a waiting person sees."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.provenance import code_digest, other_code
from bnbench.records import write_record
from bnbench.sweep.names import apart
from bnbench.sweep.plan import Plan, plan_single, plan_sweep
from bnbench.sweep.progress import SweepProgress
from tests.records_factory import make_record


@functools.cache
def _composed(*words: str) -> list[RunConfig]:
    return compose_jobs(words, multirun=True)


def _jobs(*words: str, folder: Path = Path("runs/x")) -> list[RunConfig]:
    return [dataclasses.replace(job, dir=str(folder)) for job in _composed(*words)]


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["norm=gn", "norm.batch_size=4"], "has no NBS; leave it out"),
        (["norm=gn", "norm.momentum=0.2"], "gn reads num_groups, eps"),
        (["norm=gn", "norm.statistics=rank0"], "gn reads num_groups, eps"),
        (["norm=bn", "norm.num_groups=4"], "bn reads batch_size, statistics, momentum, eps"),
        (["norm=syncbn", "norm.batch_size=4"], "use norm=bn to choose its NBS"),
        (["optim.lr_rule=none", "optim.base_batch=64"], "choose linear or sqrt"),
        (["optim=adamw", "optim.momentum=0.9"], "adamw reads betas, eps"),
        (["schedule=cosine", "schedule.gamma=0.1"], "leave it out"),
    ],
)
def test_a_single_run_refuses_what_it_would_ignore(words, way_out):
    (config,) = _jobs(*words)
    with pytest.raises(ValueError, match=rf"^{words[1]} would be ignored by {words[0]}: .*{way_out}"):
        plan_single(config)
    (plain,) = _jobs(words[0])
    assert plan_single(plain).runs == [plain]


def test_settings_of_one_identity_collapse_and_are_told():
    plan = plan_sweep(_jobs("norm=bn,gn", "norm.batch_size=2,4"))
    assert [run.run_name for run in plan.todo] == [
        "resnet8-bn-nbs2-s0",
        "resnet8-bn-nbs4-s0",
        "resnet8-gn-s0",
    ]
    assert plan.cells() == 3
    (remark,) = plan.remarks
    assert "4 combinations are 3 distinct runs" in remark
    assert "norm=gn does not read norm.batch_size" in remark


def test_syncbn_and_bn_over_the_world_are_one_run():
    plan = plan_sweep([*_jobs("norm.batch_size=64"), *_jobs("norm=syncbn")])
    assert len(plan.todo) == plan.cells() == 1
    assert "2 combinations are 1 distinct runs" in plan.remarks[0]


def test_a_plan_of_a_plan_is_itself():
    plan = plan_sweep(_jobs("norm=bn,gn,syncbn", "norm.batch_size=2,64", "seed=0,1"))
    again = plan_sweep(plan.runs)
    assert again.runs == plan.runs
    assert again.remarks == []
    assert (len(plan.runs), plan.cells()) == (6, 3)


def test_seeds_are_runs_of_one_cell():
    plan = plan_sweep(_jobs("seed=0,1,2"))
    assert (len(plan.todo), plan.cells(), plan.remarks) == (3, 1, [])


def test_a_sweep_ignores_no_setting_silently():
    """Nothing collapses here, and yet norm.batch_size=4 is read by neither run."""
    plan = plan_sweep(_jobs("norm=gn", "norm.batch_size=4", "seed=0,1"))
    assert len(plan.todo) == 2
    assert any("norm.batch_size" in remark for remark in plan.remarks)


@pytest.mark.parametrize("status", ["completed", "diverged", "oom", "timeout", "preempted", "failed"])
def test_only_what_is_missing_runs(tmp_path, status):
    jobs = _jobs("seed=0,1,2", folder=tmp_path)
    write_record(jobs[1].folder, make_record(status=status))
    for plan in (plan_sweep(jobs), plan_single(jobs[1])):
        if status in ("completed", "diverged"):
            assert plan.finished == [jobs[1]]
            assert re.search(r"finished already and kept.*name=", plan.remarks[0])
        else:
            assert not plan.finished
            assert plan.remarks == []
        assert jobs[1] in plan.runs
        assert not set(map(id, plan.finished)) & set(map(id, plan.todo))
    assert len(plan_sweep(jobs).runs) == 3


def _left_by(folder: Path, run: RunConfig, **provenance: Any) -> None:
    record = make_record()
    write_record(run.folder, dataclasses.replace(record, provenance=record.provenance | provenance))


def test_what_other_code_finished_is_named_and_reused_only_when_asked(tmp_path):
    jobs = _jobs("seed=0,1,2", folder=tmp_path)
    _left_by(tmp_path, jobs[0])
    _left_by(tmp_path, jobs[1], code="of another day")
    plan = plan_sweep(jobs)
    assert (plan.finished, plan.todo, plan.others) == ([jobs[0]], [jobs[2]], {"commit 0123456": [jobs[1]]})
    refusal = plan.refusal()
    assert refusal is not None
    for text in ("1 of 3 run(s)", "other code (commit 0123456)", "reuse_records=true", "name=..."):
        assert text in refusal
    asked = plan_sweep(_jobs("seed=0,1,2", "reuse_records=true", folder=tmp_path))
    assert asked.refusal() is None
    assert [run.seed for run in asked.finished] == [0, 1]
    assert asked.remarks[-1] == "1 of them by other code (commit 0123456), as reuse_records=true asks"
    assert {run.folder for run in asked.runs} == {run.folder for run in jobs}, "it is no part of the identity"


def test_a_record_of_another_schema_is_never_written_over(tmp_path):
    (job,) = _jobs(folder=tmp_path)
    path = write_record(job.folder, make_record())
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    plan = plan_sweep([job])
    assert plan.todo == [] and "records of schema 2" in (plan.refusal() or "")
    assert plan_sweep(_jobs("reuse_records=true", folder=tmp_path)).todo == []


def test_what_was_begun_on_another_number_of_ranks_is_told(tmp_path):
    words = ("norm=bn,gn", "norm.batch_size=8")
    begun = _jobs(*words, "trainer.devices=4", folder=tmp_path)
    for run in begun:
        (run.folder / "checkpoints").mkdir(parents=True)
    assert plan_sweep(begun).remarks == plan_sweep(_jobs(*words, folder=tmp_path / "new")).remarks
    assert plan_sweep(_jobs(*words, folder=tmp_path)).remarks[-1] == (
        "2 run(s) were begun on 4 rank(s): trainer.resume_world=4 goes on with them"
    )
    asked = plan_sweep(_jobs(*words, "trainer.resume_world=4", folder=tmp_path))
    assert not any("begun on" in remark for remark in asked.remarks)
    other = plan_sweep(_jobs("norm=bn", folder=tmp_path))
    assert not any("begun on" in remark for remark in other.remarks), "its NBS is another: 32, and not 16"


def test_a_truncated_record_is_named_and_its_run_trained_again(tmp_path):
    (job,) = _jobs(folder=tmp_path)
    path = write_record(job.folder, make_record())
    path.write_bytes(path.read_bytes()[:100])
    plan = plan_sweep([job])
    assert plan.todo == [job] and plan.refusal() is None
    assert str(path) in plan.remarks[0] and "trained again" in plan.remarks[0]


@pytest.mark.parametrize(
    ("came_from", "called"),
    [
        ({"code": code_digest()}, None),
        ({"code": "x", "git": {"commit": "abcdef123", "dirty": True}}, "commit abcdef1 with changes"),
        (
            {"code": "x", "git": {"commit": None, "dirty": None}, "versions": {"bnbench": "0.0.9"}},
            "bnbench 0.0.9",
        ),
        ({"git": {"commit": "abcdef123", "dirty": False}}, "commit abcdef1"),
        ({}, "unknown code"),
    ],
)
def test_other_code_has_a_name(came_from, called):
    assert other_code(came_from) == called


def test_the_batches_of_a_sweep_make_one_plan(tmp_path):
    first, second = (plan_sweep(_jobs(f"seed={seeds}", folder=tmp_path)) for seeds in ("0,1", "1,2"))
    both = first.joined(second)
    assert [run.seed for run in both.runs] == [0, 1, 2]


def test_planning_writes_nothing(tmp_path):
    plan_sweep(_jobs("seed=0,1", folder=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


# Progress


def _drive(progress: SweepProgress, plan: Plan, outcomes: list[str]) -> None:
    with progress:
        for config, outcome in zip(plan.todo, outcomes, strict=True):
            progress.begin(config)
            for step in (1, 50, 100):
                progress.update(config, {"epoch": 0, "step": step, "steps": 100, "images_per_s": 1234.5})
            progress.end(config, outcome)


@pytest.fixture
def plan(tmp_path) -> Plan:
    """Two runs in a folder with a name that rich would take for markup, one with a record."""
    plan = plan_sweep(_jobs("seed=0,1", folder=tmp_path / "a[bold]folder"))
    write_record(plan.todo[0].folder, make_record(error=12.345))
    return plan


def _assert_plain(text: str) -> None:
    first, second = text.splitlines()
    assert re.fullmatch(
        r"\[1/2\] resnet8-bn-nbs32-s0: completed, validation error 12\.3[45]%, \d+\.\d s", first
    )
    assert re.fullmatch(r"\[2/2\] resnet8-bn-nbs32-s1: failed, \d+\.\d s", second)


def test_off_a_terminal_each_run_leaves_one_plain_line(plan):
    out = io.StringIO()
    _drive(SweepProgress(2, Console(file=out)), plan, ["completed", "failed"])
    _assert_plain(out.getvalue())


def test_the_default_console_is_plain_where_nobody_watches(plan, capsys):
    _drive(SweepProgress(2), plan, ["completed", "failed"])
    _assert_plain(capsys.readouterr().out)


def test_a_terminal_shows_pace_and_keeps_the_lines(plan):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, _environ={"TERM": "xterm"})
    with SweepProgress(2, console) as progress:
        progress.begin(plan.todo[0])
        progress.update(plan.todo[0], {"epoch": 1, "step": 50, "steps": 100, "images_per_s": 1234.5})
        progress.bars.refresh()
        progress.end(plan.todo[0], "completed")
        progress.bars.refresh()
    shown = out.getvalue()
    for words in ("resnet8-bn-nbs32-s0", "epoch 2", "1,234 images/s", "50/100", "left", "0/2", "1/2"):
        assert words in shown
    assert "[1/2] resnet8-bn-nbs32-s0: completed, validation error" in shown


def test_only_one_rank_speaks(plan, capsys):
    _drive(SweepProgress(2, quiet=True), plan, ["completed", "failed"])
    assert capsys.readouterr().out == ""


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    plan = plan_sweep(_jobs("optim.lr=0.1,0.2", "seed=0,1", folder=tmp_path))
    _drive(SweepProgress(4, apart=apart(plan.runs)), plan, ["completed"] * 4)
    names = [line.partition("] ")[2].partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"resnet8-bn-nbs32-s{seed} lr={lr}" for lr in (0.1, 0.2) for seed in (0, 1)]


def test_what_the_swap_of_norms_changed_is_told_once(plan, capsys):
    for config in plan.todo:
        record = make_record(error=10.0)
        record.norm_swap = {"notes": ["b1: num_groups 4, not 5: 8 channels"]}
        write_record(config.folder, record)
    _drive(SweepProgress(2), plan, ["completed", "completed"])
    first, told, second = capsys.readouterr().out.splitlines()
    assert (first[:5], second[:5]) == ("[1/2]", "[2/2]")
    assert told == "  bn in resnet8: b1: num_groups 4, not 5: 8 channels"
