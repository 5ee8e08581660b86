"""`bnbench report --wandb`: the answer as a W&B report, saved, and updated when it is made again. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bnbench import wandb_run
from bnbench.analysis.answer import Answer
from bnbench.records import Record
from bnbench.report.wandb_blocks import blocks, training_groups
from bnbench.report.wandb_curves import CurveRuns, curve_runs
from bnbench.wandb_run import LostError

INIT_SECONDS = 30.0  # to open a run
FINISH_SECONDS = 60.0  # to send its few rows
LONGEST = 80  # characters of a report's name; W&B takes 128 of a title or group


@dataclass(frozen=True)
class Posted:
    """A report on W&B: whether it is `new` there, and how many of its curve runs W&B lacked (`sent`, `of`)."""

    url: str
    new: bool
    sent: int
    of: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The words of `bnbench report` that are about W&B."""
    group = parser.add_argument_group("Weights & Biases")
    group.add_argument(
        "--wandb",
        action="store_true",
        help="make a W&B report too, or update the one of before, and print its URL; needs a key and the network. "
        "The training runs need not be on W&B; their curves are shown where they are (bnbench sync)",
    )
    group.add_argument("--project", help="where the W&B report goes, instead of the project of the records")
    group.add_argument("--entity", help="the user or team, instead of the one of the records, or of the key")


def publish(
    answer: Answer,
    records: Sequence[Record],
    *,
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    tell: Callable[[str], object] = print,
) -> Posted:
    """Save the report on W&B, after the curve runs that it draws.

    `name` tells the reports of a project apart; without it, the names of the records' sweeps. The same name again
    updates the same report, on any machine. `project` and `entity` are the records' own, then the key's own entity.
    `tell` hears of each curve run that is sent.

    Raises ValueError, one line: a mistake, or a server that does not answer; then the same call again goes on.
    """
    if find_spec("wandb_workspaces") is None:
        raise ValueError(
            "--wandb needs wandb-workspaces, which is not installed here: pip install wandb-workspaces"
        )
    runs = curve_runs(answer, records)
    if not runs:
        raise ValueError(
            "--wandb has nothing to draw: no run of these records completed with a validation error"
        )
    name = name or sweep_names(records)
    homes = [wandb_run.home(record) for record in records if "logger" in record.config]
    project = project or _the_one("project", {home[0] for home in homes}) or "bnbench"
    entity = entity or _the_one("entity", {home[1] for home in homes})
    try:
        with wandb_run.staging():
            api, own = wandb_run.connect()
            entity = entity or own
            server = CurveRuns(api, entity, project, name, INIT_SECONDS, FINISH_SECONDS)
            found, sent = server.send_all(runs, tell)
            training = {"jobType": wandb_run.JOB, "group": {"$in": training_groups(records)}}
            with wandb_run.asking():
                trained = len(api.runs(f"{entity}/{project}", training, per_page=1)) > 0
            made = blocks(answer, records, found, trained)
            with wandb_run.asking():
                url, new = _save(api, entity, project, name, made)
    except LostError as error:
        raise ValueError(f"{error}: nothing is lost: the same command again goes on from here") from None
    return Posted(url, new, sent, len(runs))


def sweep_names(records: Sequence[Record]) -> str:
    """What a report on these records is called: `quickstart`, or `a, b`; of many sweeps the first and a count."""
    names = sorted({record.config.get("name") or "runs" for record in records})
    text = ", ".join(names)
    return text if len(text) <= LONGEST else f"{names[0][:LONGEST]} and {len(names) - 1} more"


def _the_one(kind: str, values: Iterable[str | None]) -> str | None:
    """The value that the records agree on; None if none has one."""
    known = sorted({value for value in values if value})
    if len(known) > 1:
        raise ValueError(
            f"these records are of more than one W&B {kind} ({', '.join(known)}), and a report is in one: name it by "
            f"--{kind}"
        )
    return known[0] if known else None


def _save(api: Any, entity: str, project: str, name: str, made: Sequence[Any]) -> tuple[str, bool]:
    """The URL of the report that was updated or made, and whether it is new.

    It is known by its description, which leaves its title to the user and needs nothing on this disk.
    """
    import wandb_workspaces.reports.v2 as wr

    mark = (
        f"Made by bnbench report of {name}. Made again, it replaces what is here and finds it by this line."
    )
    there = api.reports(f"{entity}/{project}")
    found = next((report for report in there if report.description == mark), None)
    title = f"bnbench {name}" if found is None else found.display_name
    report = wr.Report(
        entity=entity, project=project, title=title, description=mark, blocks=list(made), width="fluid"
    )
    report.id = "" if found is None else found.id
    report.save()
    return (report.url if found is None else found.url).rstrip("="), found is None
