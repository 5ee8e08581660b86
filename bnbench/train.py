"""`bnbench train`, also `python -m bnbench.train`: the Hydra application for a run or a sweep. No torch.

compose + check -> plan -> world -> (training.run on every rank) -> what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bnbench.config import RunConfig
from bnbench.folders import CONFIG_NAME, check_output, check_temporary, config_folder, missing, remove_empty
from bnbench.launch import check_world, place_given, speaks
from bnbench.records import RECORD, Record, read_record
from bnbench.sweep.fairness import told
from bnbench.sweep.plan import Plan, plan_single, plan_sweep
from bnbench.waiting import data_wait_remark

if TYPE_CHECKING:
    from bnbench.sweep.outcome import Outcome

MULTIRUN = "multirun.yaml"
BROKEN = ("failed", "oom", "timeout")
STOPPED = 143  # 128 + SIGTERM, as a shell says it of what a signal ended
HYDRAS_OWN = ("cfg", "info", "hydra_help", "shell_completion", "version", "package", "resolve")


class Application:
    """Hydra's task function; its launcher calls `sweep`. Keeps what came of each run for the last words."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.plan: Plan | None = None

    def __call__(self, config: Any) -> None:
        from bnbench.compose import check

        self._run(plan_single(check(config)))

    def sweep(self, configs: Sequence[Any]) -> list[str]:
        """Train what is missing of the configs, and return the status of each."""
        from bnbench.compose import check

        checked = [check(config) for config in configs]
        self._run(plan_sweep(checked))
        return [_status(config.without_ignored()) for config in checked]

    def _run(self, plan: Plan) -> None:
        from bnbench.sweep.pool import run_all

        self.plan = plan
        if plan.todo or place_given() is not None:
            self.outcomes = run_all(plan)


def main(argv: Sequence[str]) -> int:
    """Compose, check, train, tell. Returns the exit code; raises ValueError for a user's mistake."""
    import hydra

    from bnbench.compose import read_request

    arguments = parse(argv)
    application = Application()
    run_hydra = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)
    words, multirun = list(argv), arguments.multirun
    made: list[Path] = []
    if not asks_hydra(arguments):
        request = read_request(arguments.overrides, multirun, arguments.config_dir)
        multirun = request.multirun
        plan = plan_sweep(request.runs) if multirun else plan_single(request.runs[0])
        for run in plan.runs:
            check_world(place_given(), run.trainer.devices, run.trainer.num_nodes)
            check_output(run.dir)
        if place_given() is None:
            check_temporary()
        _announce(plan, multirun)
        made = missing(Path(request.sweep_dir))
        options = [word for word in argv if word not in arguments.overrides]
        words = [*options, *request.words]
    before, sys.argv = sys.argv, ["bnbench train", *words]
    try:
        run_hydra(application)()
    finally:
        sys.argv = before
        if made and {path.name for path in made[0].glob("*")} == {MULTIRUN}:
            (made[0] / MULTIRUN).unlink()  # Hydra wrote it before any setup, and nothing ran
            remove_empty(made)
    if application.plan is None:
        return 0
    return _last_words(application.plan, application.outcomes, arguments.overrides if multirun else None)


def parse(argv: Sequence[str], verb: str = "train") -> argparse.Namespace:
    """Hydra's options, which may stand anywhere among the overrides."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message} (see bnbench {verb} --help and --hydra-help)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(argv))


def asks_hydra(arguments: argparse.Namespace) -> bool:
    """Whether an option is given that Hydra answers itself, such as `--cfg job`: nothing trains then."""
    return any(getattr(arguments, name, None) for name in HYDRAS_OWN)


def _announce(plan: Plan, multirun: bool) -> None:
    if not speaks(place_given()):
        return
    if multirun:
        _say(plan.headline())
        for line in told(plan.runs):
            _say(line)
    for remark in plan.remarks:
        _say(remark)


def _last_words(plan: Plan, outcomes: Sequence[Outcome], swept: Sequence[str] | None) -> int:
    """What came of it, what is missing, where to go on. `swept`: the words of a sweep, None for one run."""
    if not speaks(place_given()):
        return 0  # the first rank has the same outcomes, and torchrun would cut off what it tells
    for problem in dict.fromkeys(o.error for o in outcomes if o.status == "refused"):
        count = sum(o.status == "refused" and o.error == problem for o in outcomes)
        which = "" if swept is None else f" ({count} of {len(plan.runs)} runs did not start)"
        print(f"bnbench train: {problem}{which}", file=sys.stderr)
    broken = [o for o in outcomes if o.status in BROKEN]
    for outcome in broken:
        last = (outcome.error or "").strip().splitlines()[-1:]
        print(f"bnbench train: {outcome.config.run_name}: {outcome.status}: {''.join(last)}", file=sys.stderr)
    if broken:
        _say("The same command again trains only what is missing; the tracebacks are in the records.")
    stopped = [o for o in outcomes if o.status == "preempted"]
    missing_runs = len(plan.todo) - len(outcomes)
    if stopped or missing_runs:
        for outcome in stopped:
            print(f"bnbench train: {outcome.config.run_name}: {outcome.error}", file=sys.stderr)
        _say(f"Stopped with {missing_runs + len(stopped)} run(s) to go: the same command goes on with them.")
    recorded = [run for run in plan.runs if (run.folder / RECORD).exists()]
    remark = data_wait_remark(_readable(recorded))
    if remark:
        _say(remark)
    if recorded and swept is not None:
        _show_report(recorded, swept)
    elif recorded:
        _say(f"record: {recorded[0].folder / RECORD}")
        _say(f"next:   bnbench report {shlex.quote(recorded[0].dir)}")
    return _exit_code(outcomes, stopped=bool(stopped or missing_runs))


def _readable(runs: Sequence[RunConfig]) -> list[Record]:
    """The runs' records but for those that the report will name as broken."""
    found = []
    for run in runs:
        with contextlib.suppress(ValueError):
            found.append(read_record(run.folder / RECORD))
    return found


def _show_report(runs: Sequence[RunConfig], words: Sequence[str]) -> None:
    """The reading half's table and page for a sweep's folders, then where to go from here."""
    from bnbench import report

    folders = list(dict.fromkeys(run.dir for run in runs))
    report.main(folders)
    same = [word for word in words if not word.startswith("seed=")]
    other = [word for word in same if not word.startswith(("name=", "dir=", "data"))]
    _say("\nNext:")
    _say(
        f"  {_command(same)} seed=0,1,2,3,4\n      narrower intervals: what is finished is kept, only new seeds train"
    )
    _say(
        f"  {_command(other)} data=image_folder data.root=FOLDER name=my-images\n      the same on your own images"
    )
    if runs[0].logger.name == "wandb" and runs[0].logger.mode == "offline":
        files = f"{shlex.quote(folders[0])}/*/wandb/offline-run-*"
        _say(f"  wandb sync {files}\n      the curves on W&B (after wandb login)")


def _command(words: Sequence[str]) -> str:
    return shlex.join(["bnbench", "train", "-m", *words])


def _status(config: RunConfig) -> str:
    try:
        return read_record(config.folder / RECORD).status
    except ValueError:
        return "refused"


def _exit_code(outcomes: Sequence[Outcome], stopped: bool) -> int:
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses:
        return 2
    if stopped:
        return STOPPED
    return 1 if statuses & set(BROKEN) else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    from bnbench.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
