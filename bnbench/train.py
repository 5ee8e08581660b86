"""`bnbench train`, also `python -m bnbench.train`: the Hydra application for a run or a sweep. No torch.

compose + check -> plan -> world -> (training.run on every rank) -> what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bnbench.config import RunConfig
from bnbench.config.slurm import SlurmConfig, slurm_config
from bnbench.folders import CONFIG_NAME, check_output, check_temporary, config_folder, missing, remove_empty
from bnbench.last_words import last_words
from bnbench.launch import check_world, idle_tasks, place_given, speaks
from bnbench.provenance import note_code
from bnbench.records import RECORD, finished_status, read_record
from bnbench.sweep.fairness import told
from bnbench.sweep.options import PoolOptions, pool_options
from bnbench.sweep.plan import Plan, plan_single, plan_sweep
from bnbench.sweep.slurm import check_submission
from bnbench.sweep.stopping import StopRequest
from bnbench.wandb_run import check_given_id

if TYPE_CHECKING:
    from bnbench.sweep.outcome import Outcome

MULTIRUN = "multirun.yaml"
HYDRAS_OWN = ("cfg", "info", "hydra_help", "shell_completion", "version", "package", "resolve")


class Application:
    """Hydra's task function; its launcher calls `sweep`. Keeps what came of each run for the last words."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.plan: Plan | None = None
        self.stop = StopRequest()
        self.slurm: SlurmConfig | None = None
        self.problem: str | None = None  # a user's mistake that only SLURM can see

    def __call__(self, config: Any) -> None:
        from bnbench.compose import check

        self._run(plan_single(check(config)))

    def sweep(self, configs: Sequence[Any], options: PoolOptions) -> list[str]:
        """Train what is missing of the configs, and return the status of each."""
        from bnbench.compose import check

        checked = [check(config) for config in configs]
        self._run(plan_sweep(checked), options)
        return [_status(config.without_ignored()) for config in checked]

    def submit(self, configs: Sequence[Any]) -> list[Any]:
        """Hand what is missing of the configs to SLURM, and return each run's job, or its status where it has one."""
        from bnbench.compose import check
        from bnbench.sweep.submission import hand_over

        assert self.slurm is not None
        checked = [check(config) for config in configs]
        plan = plan_sweep(checked)
        try:
            _check_plan(plan)
            jobs, outcomes = hand_over(plan, self.slurm)
        except ValueError as error:  # Hydra would show where it was raised
            self.problem = str(error)
            return [None] * len(checked)
        if outcomes is not None:  # else nothing has come of it yet, and there are no last words
            self._keep(plan)
            self.outcomes += outcomes
        folders = [config.without_ignored().folder for config in checked]
        if self.slurm.wait:
            jobs = {}
        return [
            jobs.get(folder) or _status(config.without_ignored())
            for folder, config in zip(folders, checked, strict=True)
        ]

    def _run(self, plan: Plan, options: PoolOptions | None = None) -> None:
        from bnbench.sweep.pool import run_all

        self._keep(plan)
        _check_plan(plan)
        if plan.todo or place_given() is not None:
            self.outcomes += run_all(plan, options or PoolOptions(), self.stop)

    def _keep(self, plan: Plan) -> None:
        """Beside what Hydra has called for before: a sweep may come in batches."""
        self.plan = plan if self.plan is None else self.plan.joined(plan)


def main(argv: Sequence[str]) -> int:
    """Compose, check, train, tell. Returns the exit code; raises ValueError for a user's mistake."""
    import hydra

    from bnbench.compose import at_home, check_keys, read_request

    note_code()
    argv = at_home(argv)
    arguments = parse(argv)
    application = Application()
    run_hydra = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)
    words, multirun = list(argv), arguments.multirun
    made: list[Path] = []
    with contextlib.ExitStack() as guard:
        if asks_hydra(arguments):
            if arguments.cfg and multirun:
                raise ValueError("--cfg shows the configuration of one run: leave out -m and what is swept")
            if arguments.cfg or arguments.info:
                check_keys(arguments.overrides, arguments.config_dir)
        else:
            request = read_request(arguments.overrides, multirun, arguments.config_dir)
            multirun = request.multirun
            application.slurm = slurm = check_launcher(request.launcher, multirun)[1]
            plan = plan_sweep(request.runs) if multirun else plan_single(request.runs[0])
            _check_before(plan, slurm)
            if slurm is None:
                guard.enter_context(application.stop)  # from the first line on: Hydra takes seconds, too
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
        if application.problem is not None:
            raise ValueError(application.problem)
        if application.plan is None:
            return 0
        stopped = application.stop.exit_code if application.stop.asked else None
        # Still guarded: a request to stop that comes when all is done is not to end it as a failure.
        return last_words(application.plan, application.outcomes, argv, multirun, stopped)


def check_launcher(launcher: Mapping[str, Any], multirun: bool) -> tuple[PoolOptions, SlurmConfig | None]:
    """How worlds are started here, and what SLURM is asked for if it is to start them.

    Raises ValueError for a launcher's setting that is wrong, or that nothing would read.
    """
    pool, slurm, place = pool_options(launcher), slurm_config(launcher), place_given()
    if not multirun and (slurm is not None or pool != PoolOptions()):
        raise ValueError("hydra/launcher and its keys are read by a sweep only: add -m, also for one run")
    if place is not None and (slurm is not None or pool != PoolOptions()):
        what = (
            "hydra/launcher=slurm submits jobs"
            if slurm
            else "hydra.launcher.worlds and fresh_world start worlds"
        )
        raise ValueError(
            f"{what}, and this process is one of {place.size} that {place.origin} started: start it by itself, or "
            "leave that out"
        )
    return pool, slurm


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


def _check_before(plan: Plan, slurm: SlurmConfig | None) -> None:
    """Raise ValueError for what can be told before anything is written."""
    _check_plan(plan)
    for run in plan.runs:
        if slurm is None:
            check_world(place_given(), run.trainer.devices, run.trainer.num_nodes)
        check_output(run.dir)
    check_given_id(plan.runs)
    if slurm is not None:
        check_submission(plan.todo, slurm)
    if place_given() is None:
        check_temporary()


def _check_plan(plan: Plan) -> None:
    if (problem := plan.refusal()) is not None:
        raise ValueError(problem)


def _announce(plan: Plan, multirun: bool) -> None:
    if not speaks(place_given()):
        return
    if multirun:
        _say(plan.headline())
        for line in told(plan.runs):
            _say(line)
    idle = idle_tasks(plan.runs[0].trainer.devices)
    for remark in [*plan.remarks, *([idle] if idle else [])]:
        _say(remark)


def _status(config: RunConfig) -> str:
    try:
        return finished_status(config.folder) or read_record(config.folder / RECORD).status
    except ValueError:
        return "refused"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    from bnbench.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
