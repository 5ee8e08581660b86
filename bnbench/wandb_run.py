"""One of W&B's runs for each of ours: its id, what it is opened with, what the server has of it. No torch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import netrc
import os
import re
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bnbench.curves import STEP
from bnbench.records import Record, digest, flatten

if TYPE_CHECKING:
    from bnbench.config import RunConfig

# A killed run keeps its curve if the log is flushed every second, not every 15; what W&B has to say is said by us.
SETTINGS = {
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
PLACES = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
JOB = "train"  # W&B's job type of the runs that train
API_SECONDS = 30  # that a question to the server may take
END_SECONDS = 5.0  # that its service may take to end
REFUSED = re.compile(r"\b(401|403)\b|not logged in|permission|Unauthorized")  # what is said of a key
TAG = 64  # characters of a tag, at most

T = TypeVar("T")


class LostError(Exception):
    """The server does not answer, or does not take what it is sent; one line."""


def set_environment(folder: Path) -> None:
    """Set what the user has not set; what W&B stages and caches goes into `folder` rather than the home folder."""
    beside = {key: str(folder.absolute() / ".wandb" / name) for key, name in PLACES.items()}
    for key, value in (SETTINGS | beside).items():
        os.environ.setdefault(key, value)


@contextlib.contextmanager
def staging() -> Iterator[None]:
    """In here W&B stages and caches in a folder of its own that is gone afterwards, with the service that used it."""
    before = {key: os.environ.get(key) for key in PLACES}
    with tempfile.TemporaryDirectory(prefix="bnbench-wandb-", ignore_cleanup_errors=True) as folder:
        set_environment(Path(folder))
        try:
            yield
        finally:
            end_service()  # it writes there
            for key in (key for key, value in before.items() if value is None):
                os.environ.pop(key, None)  # else W&B would make that folder anew


def run_id(name: str, identity: Mapping[str, Any]) -> str:
    """It follows from the sweep's name and the identity, so that the same run again is the same W&B run."""
    return hashlib.sha256(f"{name}/{digest(identity, 64)}".encode()).hexdigest()[:16]


def given_id() -> str | None:
    """The id that the environment asks for: an agent's, or the user's own."""
    return os.environ.get("WANDB_RUN_ID") or None


def check_given_id(runs: Sequence[RunConfig]) -> None:
    """Raise ValueError if several runs would be logged into the one that WANDB_RUN_ID names."""
    logged = [run for run in runs if run.logger.name == "wandb" and run.logger.mode != "disabled"]
    if given_id() is not None and len(logged) > 1:
        raise ValueError(
            f"WANDB_RUN_ID={given_id()} names one W&B run, and these words ask for {len(logged)}: unset it, or give "
            "each key one value (an agent starts one run at a time)"
        )


def group(config: Mapping[str, Any]) -> str:
    """The W&B group of a run, by its config as a record has it."""
    name: str = config["logger"].get("group") or config["name"]
    return name


def home(record: Record) -> tuple[str, str | None]:
    """The project and the entity that a record's run is logged to; None is the key's own entity."""
    logger, track = record.config["logger"], record.wandb
    made_up = track.get("mode") == "disabled"
    return track.get("project") or logger["project"], (not made_up and track.get("entity")) or logger[
        "entity"
    ]


def options(config: Mapping[str, Any], identity: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What `wandb.init` is told of a run: `config` is a RunConfig as a mapping, as a record has it."""
    logger, kind = config["logger"], identity["norm"]["name"]
    return {
        "project": logger.get("project") or "bnbench",
        "entity": logger.get("entity"),
        "group": group(config),
        "job_type": JOB,
        "name": name,
        "tags": [
            tag[-TAG:]  # of a dotted path its end tells most
            for tag in (config["model"]["name"], kind, config["data"]["name"], *logger.get("tags", ()))
        ],
        "config": {"identity": dict(identity), **config},
        "notes": identity["data"].get("label"),
    }


def open_run(
    mode: str, init_timeout: float, finish_timeout: float, folder: Path, axis: str = STEP, **given: Any
) -> Any:
    """A started W&B run with files in `folder`, which charts its rows over `axis`.

    Raises what `wandb.init` raises, within about `init_timeout` seconds; `finish` of the run raises TimeoutError
    after `finish_timeout`.
    """
    import wandb

    _read_packages_once()
    if mode == "online" and "WANDB_RESUME" not in os.environ:
        given["resume"] = "allow"  # the same run again, after a failure
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=init_timeout,
        login_timeout=init_timeout,  # on a terminal it asks for a key
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
    )
    run = wandb.init(mode=mode, dir=str(folder), settings=settings, allow_val_change=True, **given)  # type: ignore[arg-type]
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis, step_sync=True)
    return run


@functools.cache
def _read_packages_once() -> None:
    """Every start of a run reads the metadata of all installed packages for its requirements.txt, nine tenths of the
    time that it takes; a process's packages stay what they are."""
    from wandb import util

    if read := getattr(util, "working_set", None):  # no public name; without it a start only takes longer
        util.working_set = functools.cache(lambda: tuple(read()))


def end_service() -> None:
    """End W&B's service, so that the next run has one of its own; what it has not sent by now is left.

    Never raises, and returns within `END_SECONDS`: W&B's own teardown may wait for ever for what the service does not
    get rid of, raises where the service is gone, and exits with the service's exit code if that is not 0.
    """
    wandb: Any = sys.modules.get("wandb")
    if wandb is None:
        return

    def teardown() -> None:
        with contextlib.suppress(BaseException):
            wandb.teardown()

    with contextlib.suppress(TimeoutError):
        within(END_SECONDS, teardown)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives or raises; TimeoutError if it takes longer, which leaves it to a thread that ends with this
    process. Not all of W&B's questions to its service have an end of their own.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="wandb-question", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # raised by the call
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def connect(seconds: float | None = None) -> tuple[Any, str]:
    """`wandb.Api` and the key's own entity. ValueError without a key, and what `asking` raises."""
    import wandb

    seconds = API_SECONDS if seconds is None else seconds

    def ask() -> tuple[Any, str]:
        api = wandb.Api(timeout=math.ceil(seconds))
        return api, api.default_entity or ""

    if not login():
        raise ValueError("there is no W&B key here: wandb login, or set WANDB_API_KEY")
    with asking():
        return within(seconds, ask)


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """What wandb raises in here is one line: ValueError for a mistake (key, entity), LostError for anything else."""
    try:
        yield
    except Exception as error:
        where, text = os.environ.get("WANDB_BASE_URL") or "api.wandb.ai", line_of(error)
        if REFUSED.search(text):
            raise ValueError(f"W&B at {where} refuses the key ({text}): wandb login --relogin") from None
        if "not found" in text:
            raise ValueError(f"W&B at {where}: {text}: name an --entity and --project of this key") from None
        raise LostError(f"W&B at {where} does not answer ({text})") from None


def line_of(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rpartition(": ")[2]


def steps_of(run: Any) -> set[int]:
    """The steps that a run of `wandb.Api` has rows of."""
    return {int(row[STEP]) for row in run.scan_history(keys=[STEP])}


def find_run(api: Any, path: str) -> Any:
    """A run as the server has it now; None if it has none. Raises wandb's errors if it does not answer."""
    import wandb

    api.flush()  # it remembers
    try:
        return api.run(path)
    except (wandb.errors.CommError, ValueError) as error:
        if "could not find" in str(error).lower():
            return None
        raise


def runs_where(api: Any, path: str, **values: Any) -> list[Any]:
    """The runs of a project with these attributes, as the server has them now; none if there is no such project."""
    api.flush()
    try:
        return list(api.runs(path, values))
    except ValueError as error:
        if "could not find" in str(error).lower():
            return []
        raise


def summary(record: Record) -> dict[str, Any]:
    """What a record adds to the summary: its status, metrics, timings and speed, without what is not finite."""
    values = {f"final/{key.removeprefix('final_')}": value for key, value in record.metrics.items()}
    values |= {f"timing/{key}": value for key, value in record.timings.items()}
    values |= {f"speed/{key}": value for key, value in flatten(record.speed).items() if value is not None}
    finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
    return {"status": record.status, **finite}


def login(environ: Mapping[str, str] = os.environ) -> str:
    """Where a key for the server lies, never the key; nothing is asked over the network. Empty if there is none."""
    if environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urllib.parse.urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    home = Path(environ.get("HOME", "~")).expanduser()
    for path in (Path(environ["NETRC"]) if "NETRC" in environ else home / ".netrc", home / "_netrc"):
        try:
            if host in netrc.netrc(str(path)).hosts:
                return str(path)
        except (OSError, netrc.NetrcParseError):
            continue
    return ""
