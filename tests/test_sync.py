"""`bnbench sync`: a server gets what it lacks of the records' runs, each row once; mistakes are one line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnbench import cli, sync, wandb_run
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.curves import STEP, append_rows, points
from bnbench.lock import RunLock
from bnbench.records import CURVE, EPOCHS, HEALTH, write_record
from tests.records_factory import record_of
from tests.wandb_stub import HISTORY, StubRun

STEPS = [3, 4, 6, 8, 11, 12]


@pytest.fixture
def server(wandb_server):
    return wandb_server


def _run(folder: Path, *words: str, rows: int = 6, **changes: Any) -> RunConfig:
    """A run that has ended, as it lies on disk; its series end after the first `rows` steps."""
    (config,) = compose_jobs([f"dir={folder}", "name=s", *words], multirun=False)
    record = dataclasses.replace(record_of(config), **changes)
    record.metrics.update(final_val_error=12.5, train_loss=0.1 + 0.2)
    write_record(config.folder, record)
    for step in STEPS[:rows]:
        window = {"step": step, "lr": 0.1, "loss": 1 / step, "error": 50.0, "images_per_s": 1000 / 3}
        append_rows(config.folder / CURVE, [window])
        if step % 4 == 0:
            health = [
                {"step": step, "signal": "drift", "place": p, "value": "0.123457"} for p in ("a", "b,c")
            ]
            append_rows(config.folder / HEALTH, health)
            evaluation = {"epoch": step // 4, "step": step, "lr": 0.1, "train_loss": 1.0, "train_error": 2.0,
                          "val_loss": 3.0, "val_error": 4.0, "train_seconds": 1, "val_seconds": 1}  # fmt: skip
            append_rows(config.folder / EPOCHS, [evaluation])
    return config


def _sent(run: StubRun) -> dict[int, dict[str, Any]]:
    assert len(set(run.steps)) == len(run.steps), f"a step twice: {run.steps}"
    return {row[STEP]: {k: v for k, v in row.items() if k != STEP and k[0] != "_"} for row in run.rows}


def _id(config: RunConfig) -> str:
    return wandb_run.run_id(config.name, config.identity())


def _sync(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["sync", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_what_a_server_lacks_is_sent_once(tmp_path, server, capsys):
    """A new run, one with a part of its rows there, one that is whole there; nothing the second time."""
    configs = [_run(tmp_path, f"seed={seed}", "logger=none") for seed in range(3)]
    assert _sync(capsys, str(configs[2].folder))[0] == 0
    part = server.runs[_id(configs[2])]
    server.runs[_id(configs[1])] = dataclasses.replace(
        part, id=_id(configs[1]), files={HISTORY: dict(enumerate(part.lines(HISTORY)[:2]))}
    )
    before = dict(part.files[HISTORY])
    code, out, err = _sync(capsys, "runs" if (tmp_path / "runs").exists() else str(tmp_path))
    assert (code, err) == (0, "")
    assert "6 of 6 rows sent (new)" in out and "4 of 6 rows sent" in out and "there already (6 rows)" in out
    assert out.splitlines()[-1] == "2 of 3 run(s) sent, 10 row(s); the others are there already"
    for config in configs:
        assert _sent(server.runs[_id(config)]) == points(config.folder)
    assert part.files[HISTORY] == before
    requests = server.requests["file_stream"]
    code, out, _ = _sync(capsys, str(tmp_path))
    assert code == 0 and out.splitlines()[-1] == "0 of 3 run(s) sent, 0 row(s); the others are there already"
    assert server.requests["file_stream"] == requests, "not a line the second time"


def test_a_run_is_there_as_training_would_have_put_it(tmp_path, server, capsys):
    config = _run(tmp_path, "logger=wandb", "logger.tags=[mine]", "norm=gn")
    assert _sync(capsys, str(tmp_path))[0] == 0
    run = server.runs[_id(config)]
    attributes = run.attributes
    assert (attributes["displayName"], attributes["group"], attributes["jobType"]) == (
        config.run_name,
        "s",
        "train",
    )
    assert attributes["tags"] == ["resnet8", "gn", "digits", "mine"]
    assert (run.project, run.state) == ("bnbench", "finished")
    assert run.config["identity"] == json.loads(json.dumps(config.identity()))
    assert run.config["norm"]["num_groups"] == 8
    assert run.summary["status"] == "completed"
    assert run.summary["final/val_error"] == 12.5 and run.summary["final/train_loss"] == 0.1 + 0.2
    assert _sent(run)[4] == {
        "train/loss": 0.25, "train/error": 50.0, "lr": 0.1, "throughput/images_per_s": 1000 / 3, "epoch": 1,
        "val/loss": 3.0, "val/error": 4.0, "train/epoch_loss": 1.0, "train/epoch_error": 2.0,
        "health/drift/a": 0.123457, "health/drift/b,c": 0.123457, "health/drift": 0.123457,
    }  # fmt: skip


def test_a_record_that_came_later_changes_the_summary_alone(tmp_path, server, capsys):
    """A run that failed, was sent, and then ended well."""
    config = _run(tmp_path, status="failed", rows=4)
    assert _sync(capsys, str(tmp_path))[0] == 0
    run = server.runs[_id(config)]
    assert (run.state, run.summary["status"]) == ("failed", "failed")
    assert run.steps == STEPS[:3], "its last step may lack an evaluation, and no row is sent twice"
    for name in (CURVE, EPOCHS, HEALTH):
        (config.folder / name).unlink(missing_ok=True)
    _run(tmp_path)
    assert "3 of 6 rows sent" in _sync(capsys, str(tmp_path))[1]
    assert (run.state, run.summary["status"], run.steps) == ("finished", "completed", STEPS)
    run.attributes["summaryMetrics"] = "{}"
    assert "only the summary sent" in _sync(capsys, str(tmp_path))[1]
    assert (run.summary["status"], run.steps) == ("completed", STEPS)


def test_the_records_own_run_and_the_options_decide_where(tmp_path, server, capsys):
    _run(tmp_path, wandb={"id": "agents-own", "project": "theirs", "entity": "stub"})
    assert _sync(capsys, str(tmp_path))[0] == 0
    assert (server.runs["agents-own"].project, list(server.runs)) == ("theirs", ["agents-own"])
    other = _run(tmp_path / "other", "seed=1")
    assert _sync(capsys, str(tmp_path / "other"), "--project", "elsewhere", "--entity", "stub")[0] == 0
    assert server.runs[_id(other)].project == "elsewhere"


def test_a_dry_run_sends_nothing(tmp_path, server, capsys):
    _run(tmp_path)
    code, out, _ = _sync(capsys, "--dry-run", str(tmp_path))
    assert code == 0 and "6 of 6 rows to send (new)" in out and not server.runs
    assert not {"UpsertBucket", "file_stream"} & set(server.requests)


def test_what_is_sent_wandb_sync_passes_over(tmp_path, server, capsys):
    config = _run(tmp_path)
    log = config.folder / "wandb" / f"offline-run-20260101_000000-{_id(config)}" / f"run-{_id(config)}.wandb"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"")
    assert _sync(capsys, "--dry-run", str(tmp_path))[0] == 0
    assert [path.name for path in log.parent.iterdir()] == [log.name]
    assert _sync(capsys, str(tmp_path))[0] == 0
    command = [sys.executable, "-m", "wandb", "sync", str(log.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "No runs to sync" in done.stderr + done.stdout


def test_rows_that_are_cut_off_or_not_finite_stay_on_disk(tmp_path, server, capsys):
    config = _run(tmp_path, rows=4)
    append_rows(config.folder / CURVE,
                [{"step": 9, "lr": 0.1, "loss": float("nan"), "error": float("inf"), "images_per_s": 1.0}])  # fmt: skip
    with (config.folder / CURVE).open("a") as file:
        file.write("11,0.1,0.09")  # a kill in the middle of a line
    assert _sync(capsys, str(tmp_path))[0] == 0
    sent = _sent(server.runs[_id(config)])
    assert list(sent) == [*STEPS[:4], 9]
    assert sent[9] == {"lr": 0.1, "throughput/images_per_s": 1.0}
    assert _sync(capsys, str(tmp_path))[1].splitlines()[-1].startswith("0 of 1 run(s) sent")


def test_requests_that_fail_are_made_again(tmp_path, server, capsys):
    config = _run(tmp_path)
    server.fail_next(3)
    code, _, err = _sync(capsys, str(tmp_path))
    assert (code, err) == (0, "")
    assert _sent(server.runs[_id(config)]) == points(config.folder)


def test_a_server_lost_in_the_middle_gets_the_rest_the_next_time(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setattr(wandb_run, "API_SECONDS", 2)
    configs = [_run(tmp_path, f"seed={seed}") for seed in range(2)]
    server.lost_after = 6  # in the first run; it never confirms
    code, out, err = _sync(capsys, str(tmp_path), "--finish-timeout", "2")
    assert (code, out) == (1, "")
    assert "nothing is lost: the same command again sends what is missing" in err
    assert len(err.splitlines()) == 1
    server.start()
    assert _sync(capsys, str(tmp_path))[0] == 0
    for config in configs:
        assert _sent(server.runs[_id(config)]) == points(config.folder)


@pytest.mark.parametrize("fault", ["refused", "slow"])
def test_a_server_that_does_not_answer_is_one_line_and_exit_1(tmp_path, server, capsys, monkeypatch, fault):
    _run(tmp_path)
    monkeypatch.setattr(wandb_run, "API_SECONDS", 2)
    if fault == "slow":
        server.delay = 20.0
    else:
        server.stop()
    code, out, err = _sync(capsys, str(tmp_path))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert server.url in err and "does not answer" in err and "nothing is lost" in err


def test_the_time_to_open_a_run_is_also_that_of_the_first_question(tmp_path, server, capsys):
    _run(tmp_path)
    server.delay = 20.0
    code, out, err = _sync(capsys, str(tmp_path), "--init-timeout", "1.5")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "does not answer (no answer within 1.5 s)" in err


@pytest.mark.parametrize("option", ["--init-timeout", "--finish-timeout"])
@pytest.mark.parametrize("seconds", ["0", "inf", "nan"])
def test_a_time_that_is_none_is_one_line_and_exit_2(tmp_path, server, capsys, option, seconds):
    _run(tmp_path)
    code, out, err = _sync(capsys, str(tmp_path), option, seconds)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"{option}={float(seconds)} must be a finite number above 0" in err


def test_a_history_that_is_not_listed_is_the_same_and_the_command_ends(tmp_path, server, capsys):
    """W&B's scan has no end of its own."""
    _run(tmp_path)
    assert _sync(capsys, str(tmp_path))[0] == 0
    server.hanging = "SampledHistoryPage"
    code = (
        "import sys; from bnbench import cli, wandb_run; wandb_run.API_SECONDS = 1;"
        "sys.exit(cli.main(['sync', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 1
    assert "does not answer (no answer within 1 s): nothing is lost" in done.stderr


def test_a_users_mistakes_are_one_line_and_exit_2(tmp_path, server, capsys, monkeypatch):
    _run(tmp_path / "some")
    (tmp_path / "none" / "run").mkdir(parents=True)
    (tmp_path / "none" / "run" / CURVE).write_text("step\n")

    def refused(*words: str) -> str:
        code, out, err = _sync(capsys, *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        return err

    assert "no such folder" in refused(str(tmp_path / "nowhere"))
    assert "no record of a run below" in (err := refused(str(tmp_path / "none")))
    assert "1 run(s) have no record yet" in err
    assert "unrecognized arguments: --prject" in refused(str(tmp_path), "--prject=x")
    assert "entity nobody not found" in (err := refused(str(tmp_path / "some"), "--entity=nobody"))
    assert "name an --entity and --project of this key" in err
    server.wrong_key = True
    assert "refuses the key" in refused(str(tmp_path / "some"))
    monkeypatch.delenv("WANDB_API_KEY")
    assert "there is no W&B key here: wandb login" in refused(str(tmp_path / "some"))


def test_unfinished_and_unusable_runs_are_told_and_the_others_sent(tmp_path, server, capsys):
    _run(tmp_path)
    training = _run(tmp_path, "seed=1", status="failed")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / EPOCHS).write_text("epoch,step\n")
    lock = RunLock(training.folder)
    assert lock.take()
    code, out, err = _sync(capsys, str(tmp_path))
    lock.release()
    assert (code, err) == (0, f"{training.folder}: is being trained now: left for later\n")
    assert out.splitlines()[-1].startswith("1 of 1 run(s) sent, 6 row(s)")
    assert out.splitlines()[-1].endswith("1 run(s) have no record yet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{")
    code, out, err = _sync(capsys, str(tmp_path))
    assert code == 1, "some is missing"
    assert "not readable as JSON" in err and "1 of 2 run(s) sent, 5 row(s); 1 could not be" in out


def test_a_run_that_is_not_taken_costs_no_other_its_turn(tmp_path, server, capsys):
    """Its project is one that W&B takes from nobody; the number in its name is no status."""
    configs = [_run(tmp_path, f"seed={seed}", **extra) for seed, extra in enumerate(
        [{}, {"wandb": {"id": "x401", "project": "a/401/b"}}, {}])]  # fmt: skip
    code, out, err = _sync(capsys, str(tmp_path))
    assert code == 1
    assert err.startswith(f"{configs[1].folder}: W&B does not take it (") and len(err.splitlines()) == 1
    assert out.splitlines()[-1].startswith("2 of 3 run(s) sent, 12 row(s); 1 could not be")
    assert sorted(server.runs) == sorted(_id(config) for config in (configs[0], configs[2]))


def test_what_a_disabled_run_said_of_itself_is_made_up(tmp_path, server, capsys):
    _run(tmp_path, wandb={"id": "own", "project": "bnbench", "entity": "dummy", "mode": "disabled"})
    (local,) = sync.find_runs([tmp_path], None, None).runs
    assert (local.id, local.entity) == ("own", None)
    assert _sync(capsys, str(tmp_path))[0] == 0


def test_tags_are_as_long_as_wandb_takes_them(tmp_path, server, capsys):
    long = "my_laboratory.normalization_layers.experimental.variants.TheOneThatWeLike"
    config = _run(tmp_path, f"logger.tags=[{long}]")
    assert _sync(capsys, str(tmp_path))[0] == 0
    (*_, tag) = server.runs[_id(config)].attributes["tags"]
    assert tag == long[-64:]


def test_its_folder_goes_and_one_of_the_users_stays(tmp_path, server, monkeypatch):
    mine, theirs = wandb_run.PLACES
    monkeypatch.setenv(theirs, str(tmp_path / "cache"))
    with wandb_run.staging():
        made = Path(os.environ[mine])
        made.mkdir(parents=True)
        assert os.environ[theirs] == str(tmp_path / "cache")
    assert not made.exists() and not made.parent.parent.exists()
    assert mine not in os.environ, "or W&B would make it anew"
    assert os.environ[theirs] == str(tmp_path / "cache")


def test_it_imports_no_torch(tmp_path, server):
    _run(tmp_path)
    code = (
        "import sys; from bnbench import cli; assert cli.main(['sync', sys.argv[1]]) == 0;"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
