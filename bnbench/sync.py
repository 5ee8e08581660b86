"""`bnbench sync`: what W&B lacks of the runs below some folders is sent, each row once. No torch.

The records and the files beside them are the truth; the server is asked what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from bnbench import wandb_run
from bnbench.config.fields import positive
from bnbench.curves import Point, points
from bnbench.lock import is_taken
from bnbench.records import (
    CURVE,
    EPOCHS,
    FINISHED,
    HEALTH,
    RECORD,
    Record,
    find_files,
    find_records,
    read_record,
)
from bnbench.wandb_run import LostError
from bnbench.wandb_server import Missing, NotTakenError, Server

UNREFUSED = "nothing is lost: the same command again sends what is missing"


@dataclass(frozen=True)
class Local:
    """A run as the disk has it, and which W&B run it is."""

    record: Record
    folder: Path
    points: dict[int, Point]
    project: str
    entity: str | None
    id: str


@dataclass(frozen=True)
class Found:
    """The runs with a record below some folders; and a line each on the records that cannot be used, and on those that
    are passed over for a good reason."""

    runs: list[Local]
    unusable: list[str]
    passed_over: list[str]


def find_runs(roots: Sequence[Path], project: str | None, entity: str | None) -> Found:
    """Of two records of one run the first is taken. Raises ValueError for a folder that does not exist."""
    runs: dict[str, Local] = {}
    found = Found([], [], [])
    for path in _each(roots):
        if is_taken(path.parent):
            found.passed_over.append(f"{path.parent}: is being trained now: left for later")
            continue
        try:
            record = read_record(path)
            local = _local(record, path.parent, project, entity)
        except (ValueError, KeyError, TypeError) as error:
            what = str(error) if isinstance(error, ValueError) else f"{path}: no config of a run"
            found.unusable.append(what)
            continue
        if local.id in runs:
            found.passed_over.append(f"{path}: the same W&B run as another record, which is sent")
        runs.setdefault(local.id, local)
    found.runs.extend(runs.values())
    return found


def _local(record: Record, folder: Path, project: str | None, entity: str | None) -> Local:
    home = wandb_run.home(record)
    there = points(folder)
    if record.status not in FINISHED and there:
        there.popitem()  # of a step that may be half-done; a row that is sent cannot be completed later
    return Local(
        record,
        folder,
        there,
        project or home[0],
        entity or home[1],
        record.wandb.get("id") or wandb_run.run_id(record.config["name"], record.identity),
    )


def _each(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder: name one with run folders below it, such as runs/NAME")
        yield from find_records(root)


def mark_sent(local: Local) -> None:
    """Have `wandb sync` pass over the run's offline files, as over those that it has sent itself."""
    for log in local.folder.glob(f"wandb/offline-run-*-{local.id}/run-*.wandb"):
        with contextlib.suppress(OSError):
            log.with_name(f"{log.name}.synced").touch()


def unfinished(roots: Sequence[Path]) -> int:
    """How many run folders have begun and have no record yet."""
    begun = {
        file.parent for root in roots for name in (CURVE, EPOCHS, HEALTH) for file in find_files(root, name)
    }
    return sum(not (folder / RECORD).exists() for folder in begun)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bnbench sync",
        description="Send to Weights & Biases what it lacks of the runs below some folders: the server is asked what "
        "it has, and gets each row of each run once, however often this is called. Runs that were trained with "
        "logger=none are sent as well.",
        epilog="Exit code 0: it has everything; 1: some is missing, call again; 2: a mistake, such as no key. "
        "Example: bnbench sync runs/quickstart",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="with run folders below it, e.g. runs/quickstart",
    )
    parser.add_argument("--project", help="instead of the one of the record")
    parser.add_argument("--entity", help="the user or team, instead of the one of the record, or of the key")
    parser.add_argument("--dry-run", action="store_true", help="ask what is missing, send nothing")
    parser.add_argument(
        "--init-timeout", type=float, metavar="S", help="seconds to answer a question, or to open a run (30)"
    )
    parser.add_argument(
        "--finish-timeout", type=float, default=600, metavar="S", help="seconds to send a run's rows (600)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """The verb. Raises ValueError for a user's mistake."""
    arguments = _parser().parse_args(argv)
    positive("--init-timeout", arguments.init_timeout)
    positive("--finish-timeout", arguments.finish_timeout)
    if find_spec("wandb") is None:
        raise ValueError("wandb is not installed here: pip install '.[train]' in bnbench's checkout")
    found = find_runs(arguments.folders, arguments.project, arguments.entity)
    for line in [*found.unusable, *found.passed_over]:
        print(line, file=sys.stderr)
    waiting = unfinished(arguments.folders)
    without = f"; {waiting} run(s) have no record yet" if waiting else ""
    runs = found.runs
    if not runs:
        raise ValueError(f"no record of a run below {', '.join(map(str, arguments.folders))}{without}")
    rows = sent = 0
    lacking = len(found.unusable)
    try:
        with wandb_run.staging():
            server = Server(arguments.init_timeout, arguments.finish_timeout)
            width = max(len(run.record.name) for run in runs)
            for run in runs:
                try:
                    missing = server.missing(run)
                    if missing and not arguments.dry_run:
                        server.send(run, missing)
                except NotTakenError as error:
                    print(f"{run.folder}: {error}", file=sys.stderr)
                    lacking += 1
                    continue
                if not arguments.dry_run:
                    mark_sent(run)
                print(f"{run.record.name:{width}}  {_told(run, missing, arguments.dry_run)}", flush=True)
                rows, sent = rows + len(missing.points), sent + bool(missing)
    except LostError as error:
        print(f"bnbench sync: {error}: {UNREFUSED}", file=sys.stderr)
        return 1
    verb = "to send" if arguments.dry_run else "sent"
    others = f"{lacking} could not be; " if lacking else ""
    print(
        f"{sent} of {len(runs)} run(s) {verb}, {rows} row(s); {others}the others are there already{without}"
    )
    return 1 if lacking else 0


def _told(run: Local, missing: Missing, dry_run: bool) -> str:
    count = len(missing.points)
    if not missing:
        return f"there already ({len(run.points)} rows)"
    what = f"{count} of {len(run.points)} rows" if count else "only the summary"
    return f"{what} {'to send' if dry_run else 'sent'}{' (new)' if missing.new else ''}"
