"""W&B as a view of a run's files: each step once, whatever happens to the run, to W&B or to its server."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bnbench import sync, wandb_run
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.curves import STEP, Point, points
from bnbench.records import RECORD, Record, read_record
from tests.end_to_end.commands import clean_environment
from tests.ranks import WarmWorld
from tests.wandb_stub import HISTORY, StubRun, WandbStub

INIT, FINISH = 2.0, 2.0
BOUNDS = [f"logger.init_timeout={INIT}", f"logger.finish_timeout={FINISH}"]
# 8 steps of 64 in an epoch; windows of 3 steps end at 3 and 6.
SMALL = [
    "data.max_train=512", "data.max_test=64", "epochs=2", "optim.warmup_epochs=0", "model.width=4", "name=s",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.devices=1", "trainer.log_every=3",
    "trainer.checkpoint_minutes=0", "measure.health_every=2", "measure.precise_steps=2", "norm.batch_size=8",
]  # fmt: skip


@pytest.fixture
def server():
    with WandbStub() as stub:
        yield stub


@pytest.fixture(scope="module")
def world():
    with WarmWorld(1) as one:
        yield one


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def _config(folder: Path, *words: str) -> RunConfig:
    bounds = [] if "logger=none" in words else BOUNDS
    (config,) = compose_jobs([*SMALL, *bounds, *words], multirun=False)
    return dataclasses.replace(config, dir=str(folder))


@dataclasses.dataclass
class Ending:
    """What came of a call on the rank: the status or the error, the seconds, what was warned of."""

    status: str
    seconds: float  # of the call; of closing W&B's run alone, after training
    warnings: list[str]


class Ends:
    """A stop function for an attempt that ends at its n-th look (of a run that looks where a checkpoint may be made):
    asked to stop, or, as a killed rank's attempt does, without a checkpoint of its last steps."""

    def __init__(self, look: int, crash: bool = False) -> None:
        self.left, self.crash = look, crash

    def __call__(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.crash:
            raise RuntimeError("made up")
        return self.left < 0


def _train(world: Any, config: RunConfig, environment: dict[str, str], *attempts: Ends | None,
           kill_service: bool = False, pause: float = 0.0) -> Ending:  # fmt: skip
    """On a rank: attempts at a run one after another; the outcome of the last."""
    import logging

    from bnbench.training import run
    from bnbench.training.callbacks import PreemptedError
    from bnbench.training.setup import DataCache

    def report(event: Any) -> None:
        time.sleep(pause)
        if kill_service and event.get("step", 0) >= 6:
            _kill_children()

    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bnbench").addHandler(handler)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    closing, finish = [0.0], run.finish_tracking

    def timed(*arguments: Any) -> None:
        began = time.monotonic()
        finish(*arguments)
        closing[0] = time.monotonic() - began

    run.finish_tracking = timed
    status = ""
    try:
        for stop in attempts or (None,):
            try:
                status = run.train_run(config, world, DataCache(), report, stop or (lambda: False))
            except (PreemptedError, RuntimeError) as error:
                status = str(error)
        return Ending(status, closing[0], warned)
    finally:
        run.finish_tracking = finish
        wandb_run.end_service()
        logging.getLogger("bnbench").removeHandler(handler)
        os.environ.clear()
        os.environ.update(before)


def _slowly(world: Any, config: RunConfig, environment: dict[str, str]) -> Ending:
    return _train(world, config, environment, pause=0.7)


def _kill_children() -> None:
    """W&B's service is the one process that a rank starts which is not its data's."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        if int(fields.split()[1]) == os.getpid() and name.startswith(("wandb", "gpu_stats")):
            os.kill(int(stat.parent.name), signal.SIGKILL)


def _sent(run: StubRun) -> dict[int, Point]:
    """The rows that the server has, by step, each once."""
    assert len(set(run.steps)) == len(run.steps), f"a step twice: {run.steps}"
    return {
        row[STEP]: {key: value for key, value in row.items() if key != STEP and not key.startswith("_")}
        for row in run.rows
    }


def _record(config: RunConfig) -> Record:
    return read_record(config.folder / RECORD)


def _timeless(found: dict[int, Point]) -> dict[int, Point]:
    return {
        s: {k: v for k, v in point.items() if not k.startswith("throughput")} for s, point in found.items()
    }


def _sync(config: RunConfig, server: WandbStub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(HOME=str(home), **server.environment())
    command = [sys.executable, "-m", "bnbench.cli", "sync", config.dir, *words]
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _wandb_sync(config: RunConfig, server: WandbStub, home: Path) -> None:
    """W&B's own command, over all offline files of a run."""
    files = list(map(str, config.folder.glob("wandb/offline-run-*")))
    environment = clean_environment(HOME=str(home), **server.environment(WANDB_MODE="offline"))
    command = [sys.executable, "-m", "wandb", "sync", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(world: WarmWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Point]:
    config = _config(tmp_path_factory.mktemp("whole"), "logger=none")
    (ending,) = world.call(_train, config, clean_environment())
    assert ending.status == "completed"
    return points(config.folder)


ONLINE = "logger.mode=online"


def test_what_is_logged_live_is_what_the_files_say(tmp_path, world, server, home):
    """Both ways to W&B, held equal: every name and every value; with all that can be measured."""
    config = _config(tmp_path, ONLINE, "measure.landscape=true", "measure.landscape_every=3", "evals_per_epoch=2",
                     "logger.finish_timeout=60")  # fmt: skip
    (ending,) = world.call(_train, config, clean_environment(HOME=str(home), **server.environment()))
    assert (ending.status, ending.warnings) == ("completed", [])
    (run,) = server.runs.values()
    sent = _sent(run)
    assert sent == points(config.folder)
    assert list(sent) == sorted(sent)
    assert {"train/loss", "val/error", "health/grad_norm", "health/loss_range", "epoch"} <= {
        key for point in sent.values() for key in point
    }
    record = _record(config)
    assert record.wandb == {
        "id": run.id, "name": record.name, "group": "s", "project": "bnbench", "mode": "online", "entity": "stub",
        "url": record.wandb["url"],
    }  # fmt: skip
    assert run.state == "finished"
    assert run.config["identity"] == record.identity
    assert run.summary["status"] == "completed"
    assert run.summary["final/val_error"] == record.metrics["final_val_error"]
    assert not list(home.iterdir()), "nothing is staged in the home folder"


def test_an_offline_run_that_went_on_is_one_run_with_each_step_once(
    tmp_path, world, server, home, undisturbed
):
    config = _config(tmp_path, "logger.mode=offline", "logger.finish_timeout=60")
    environment = clean_environment(HOME=str(home))
    (ending,) = world.call(_train, config, environment, Ends(2, crash=True), Ends(2), None)
    assert ending.status == "completed"
    assert len(_record(config).provenance["resumed"]) == 2
    (_,) = config.folder.glob("wandb/offline-run-*")
    _wandb_sync(config, server, home)
    (run,) = server.runs.values()
    assert _sent(run) == points(config.folder)
    assert _timeless(_sent(run)) == _timeless(undisturbed)
    again = _sync(config, server, home)
    assert again.returncode == 0 and "there already" in again.stdout, (
        "W&B's own command and ours mean the same run"
    )


def test_a_killed_attempt_leaves_its_offline_rows_until_another_holds_them(tmp_path, world, home):
    config = _config(tmp_path, "logger.mode=offline")
    environment = clean_environment(HOME=str(home))
    world.call(_train, config, environment, Ends(2, crash=True))
    (first,) = config.folder.glob("wandb/offline-run-*")
    time.sleep(1.1)  # their names tell seconds
    world.call(_train, config, environment, Ends(1))
    (second,) = config.folder.glob("wandb/offline-run-*")
    assert second != first


def test_an_online_run_goes_on_as_the_same_run_with_each_step_once(
    tmp_path, world, server, home, undisturbed
):
    """The server has rows of after the checkpoint (a rank died), and lacks some of before (it was lost)."""
    config = _config(tmp_path, ONLINE, "logger.finish_timeout=60")
    environment = clean_environment(HOME=str(home), **server.environment())
    world.call(_train, config, environment, Ends(2, crash=True))
    (run,) = server.runs.values()
    assert run.state == "failed"
    trained = len(run.rows)
    assert trained > 2
    (alert,) = server.alerts
    assert "made up" in str(alert)
    kept = run.lines(HISTORY)
    del kept[2]  # as if it had never come
    run.files[HISTORY] = dict(enumerate(kept))
    (ending,) = world.call(_train, config, environment, Ends(2), None)
    assert ending.status == "completed"
    assert list(server.runs) == [run.id]
    assert _timeless(_sent(run)) == _timeless(undisturbed)
    assert (run.state, len(server.alerts)) == ("finished", 1), "asked to stop is no failure"
    assert run.summary["status"] == "completed"


def test_a_step_whose_evaluation_fails_is_sent_whole_by_the_next_attempt(
    tmp_path, world, server, home, undisturbed
):
    """The window of that step is known by then, and would be all that W&B ever has of it."""
    config = _config(tmp_path, ONLINE, "logger.finish_timeout=60", "trainer.log_every=8")
    environment = clean_environment(HOME=str(home), **server.environment())
    world.call(_failing_evaluation, config, environment)
    (run,) = server.runs.values()
    assert run.state == "failed" and "made up" in str(server.alerts)
    assert not any("train/loss" in row for row in run.rows if row[STEP] == 8)
    (ending,) = world.call(_train, config, environment)
    assert ending.status == "completed"
    assert _sent(run) == points(config.folder)
    assert {"train/loss", "val/error"} <= _sent(run)[8].keys()


def _failing_evaluation(world: Any, config: RunConfig, environment: dict[str, str]) -> Ending:
    from bnbench.training.callbacks import RunningStatistics

    whole = RunningStatistics.on_validation_start

    def fail(*_: Any) -> None:
        raise RuntimeError("made up")

    RunningStatistics.on_validation_start = fail
    try:
        return _train(world, config, environment)
    finally:
        RunningStatistics.on_validation_start = whole


def test_a_server_that_does_not_list_its_rows_costs_no_more_than_the_bound(tmp_path, world, server, home):
    """W&B's scan of a history has no end of its own."""
    config = _config(tmp_path, ONLINE, "logger.finish_timeout=60")
    environment = clean_environment(HOME=str(home), **server.environment())
    world.call(_train, config, environment, Ends(2))
    (run,) = server.runs.values()
    before = run.steps
    server.hanging = "SampledHistoryPage"
    (ending,) = world.call(_impatient, config, environment)
    assert ending.status == "completed"
    (warning,) = ending.warnings
    assert f"no answer within 1 s): going on after step {before[-1]}" in warning
    assert server.requests["SampledHistoryPage (hanging)"]
    assert run.steps == list(points(config.folder)), "each once"


def _impatient(world: Any, config: RunConfig, environment: dict[str, str]) -> Ending:
    wandb_run.API_SECONDS, before = 1, wandb_run.API_SECONDS
    try:
        return _train(world, config, environment)
    finally:
        wandb_run.API_SECONDS = before


@pytest.mark.parametrize("fault", ["slow", "refused", "wrong key", "no key", "errors"])
def test_a_server_that_does_not_take_a_run_costs_no_more_than_the_bound(
    tmp_path, world, server, home, fault, undisturbed
):
    config, environment = _config(tmp_path, ONLINE), server.environment()
    if fault == "slow":
        server.delay = 20.0
    elif fault == "refused":
        server.stop()
    elif fault == "wrong key":
        server.wrong_key = True
    elif fault == "no key":
        del environment["WANDB_API_KEY"]
    else:
        server.fail_next(10**6)
    began = _begin(world, config, clean_environment(HOME=str(home), **environment))
    assert began.seconds < INIT + 4, "the bound, and what wandb takes to start twice"
    (warning,) = began.warnings
    assert (
        "W&B does not take the run" in warning and "logging offline" in warning and "bnbench sync" in warning
    )
    assert began.status == "offline"


def _begin(world: WarmWorld, config: RunConfig, environment: dict[str, str]) -> Ending:
    (ending,) = world.call(_opened, config, environment)
    return ending


def _opened(world: Any, config: RunConfig, environment: dict[str, str]) -> Ending:
    """On a rank: a tracker opened and closed; the mode that its record would have."""
    import logging

    from bnbench.training.tracking import describe, finish_tracking, start_tracking

    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bnbench").addHandler(handler)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        config.folder.mkdir(parents=True)
        began = time.monotonic()
        tracker = start_tracking(config, config.folder)
        finish_tracking(tracker, None)
        return Ending(describe(tracker)["mode"], time.monotonic() - began, warned)
    finally:
        wandb_run.end_service()
        logging.getLogger("bnbench").removeHandler(handler)
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("how", ["lost", "slow"])
def test_a_server_lost_in_the_middle_stops_nothing_and_gets_the_rest_later(
    tmp_path, world, server, home, undisturbed, how
):
    config = _config(tmp_path, ONLINE)
    # A run this short would be sent as a whole at its end.
    fast = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    environment = clean_environment(HOME=str(home), **server.environment(**fast))
    if how == "lost":
        server.lost_after = 2
    else:
        server.slow_after = 2
    (ending,) = world.call(_slowly, config, environment)
    assert ending.status == "completed"
    (warning,) = ending.warnings
    assert "W&B was lost" in warning and "bnbench sync" in warning
    assert ending.seconds < FINISH + 2, "the bound, with room"
    assert _timeless(points(config.folder)) == _timeless(undisturbed), "everything is on disk"
    (run,) = server.runs.values()
    assert 2 <= len(run.rows) < len(undisturbed)
    if how == "lost":
        assert not server.up
        server.start()
    server.slow_after = None
    done = _sync(config, server, home)
    assert done.returncode == 0, done.stderr
    assert _sent(run) == points(config.folder)
    assert (list(server.runs), run.state, run.summary["status"]) == ([run.id], "finished", "completed")
    assert "0 of 1 run(s) sent" in _sync(config, server, home).stdout


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_service_ends_no_run_and_the_next_one_has_its_own(
    tmp_path, world, server, home, undisturbed, mode
):
    config = _config(tmp_path, f"logger.mode={mode}")
    environment = clean_environment(HOME=str(home), **server.environment(WANDB_MODE=mode))
    (ending,) = world.call(_killed_service_then_another, config, environment)
    assert ending.status == "completed"
    (warning,) = ending.warnings
    assert "W&B was lost" in warning
    assert _record(config).wandb["problem"]
    assert _timeless(points(config.folder)) == _timeless(undisturbed)
    other = dataclasses.replace(config, seed=1)
    assert "problem" not in _record(other).wandb and _record(other).wandb["mode"] == mode
    done = _sync(config, server, home)
    assert done.returncode == 0, done.stderr
    assert _sent(server.runs[_record(config).wandb["id"]]) == points(config.folder)
    assert _sent(server.runs[_record(other).wandb["id"]]) == points(other.folder)


def _killed_service_then_another(world: Any, config: RunConfig, environment: dict[str, str]) -> Ending:
    ending = _train(world, config, environment, kill_service=True)
    other = _train(world, dataclasses.replace(config, seed=1), environment)
    return dataclasses.replace(ending, warnings=ending.warnings + other.warnings)


TWO_RUNS = """
import importlib.metadata, sys
from pathlib import Path
from bnbench import wandb_run
read, times = importlib.metadata.distributions, []
importlib.metadata.distributions = lambda **words: times.append(1) or read(**words)
for name in ("a", "b"):
    folder = Path(name)
    folder.mkdir()
    wandb_run.open_run("offline", 30, 30, folder, id=name, project="p").finish()
    print(len(times))
"""


def test_packages_are_read_once_a_process_and_named_in_every_run(tmp_path, home):
    environment = clean_environment(HOME=str(home))
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after_first, after_second = map(int, done.stdout.split())
    assert after_first == after_second > 0
    first, second = (
        path.read_text().splitlines()
        for path in sorted(tmp_path.glob("*/wandb/offline-run-*/files/requirements.txt"))
    )
    assert sorted(first) == sorted(second) and any(line.startswith("torch==") for line in first)


def test_an_id_in_the_environment_wins(tmp_path, world, server, home):
    """As a `wandb agent` gives it; the record knows, and so does `bnbench sync`."""
    config = _config(tmp_path, "logger.mode=offline")
    environment = clean_environment(HOME=str(home), WANDB_RUN_ID="agents-own", WANDB_SWEEP_ID="sweep1")
    world.call(_train, config, environment)
    assert _record(config).wandb["id"] == "agents-own"
    found = sync.find_runs([tmp_path], None, None)
    assert ([local.id for local in found.runs], found.unusable) == (["agents-own"], [])


def test_one_id_for_several_runs_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agents-own")
    runs = compose_jobs(["seed=0,1"], multirun=True)
    with pytest.raises(
        ValueError, match="WANDB_RUN_ID=agents-own names one W&B run, and these words ask for 2"
    ):
        wandb_run.check_given_id(runs)
    wandb_run.check_given_id(runs[:1])
    wandb_run.check_given_id(compose_jobs(["seed=0,1", "logger=none"], multirun=True))
    monkeypatch.delenv("WANDB_RUN_ID")
    wandb_run.check_given_id(runs)


def test_a_service_that_does_not_end_is_left(monkeypatch):
    """W&B's teardown was seen to wait for ever, and to exit with the exit code of a service that was killed."""
    import wandb

    monkeypatch.setattr(wandb_run, "END_SECONDS", 0.2)
    for teardown in (lambda: time.sleep(60), lambda: sys.exit(9)):
        monkeypatch.setattr(wandb, "teardown", teardown)
        began = time.monotonic()
        wandb_run.end_service()
        assert time.monotonic() - began < 2
