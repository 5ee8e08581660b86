"""`bnbench train`, also `python -m bnbench.train`: the Hydra application for a run or a sweep. No torch.

compose + check -> plan -> world -> (training.run on every rank) -> what came of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import check_world, place_given, speaks
from bnbench.records import RECORD, read_record
from bnbench.sweep.plan import Plan, plan_single, plan_sweep

HYDRAS_OWN = ("cfg", "info", "hydra_help", "shell_completion", "version", "package", "resolve")


class Application:
    """Hydra's task function; its launcher calls `sweep`. Keeps what came of each run for the last words."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
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
    from hydra._internal.utils import get_args_parser

    from bnbench.compose import CONFIG_NAME, check_output, compose_jobs, config_folder

    arguments = get_args_parser().parse_args(list(argv))
    application = Application()
    run_hydra = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)
    if not any(getattr(arguments, name, None) for name in HYDRAS_OWN):
        jobs = compose_jobs(arguments.overrides, arguments.multirun, arguments.config_dir)
        plan = plan_sweep(jobs) if arguments.multirun else plan_single(jobs[0])
        for job in plan.runs:
            check_world(place_given(), job.trainer.devices, job.trainer.num_nodes)
            check_output(job.dir)
        _announce(plan, arguments.multirun)
    before, sys.argv = sys.argv, ["bnbench train", *argv]
    try:
        run_hydra(application)()
    finally:
        sys.argv = before
    return 0 if application.plan is None else _last_words(application, arguments.multirun)


def _announce(plan: Plan, multirun: bool) -> None:
    if not speaks(place_given()):
        return
    if multirun:
        ranks = sorted({run.trainer.world_size for run in plan.runs})
        _say(
            f"{plan.cells()} cell(s), {len(plan.runs)} run(s), on {' or '.join(map(str, ranks))} rank(s), "
            f"into {plan.runs[0].dir}"
        )
    for remark in plan.remarks:
        _say(remark)


def _last_words(application: Application, multirun: bool) -> int:
    plan, outcomes = application.plan, application.outcomes
    assert plan is not None
    if not speaks(place_given()):
        return _exit_code(outcomes)
    for problem in dict.fromkeys(o.error for o in outcomes if o.status == "refused"):
        runs = [o.config.run_name for o in outcomes if o.status == "refused" and o.error == problem]
        which = f" ({len(runs)} of {len(plan.runs)} runs did not start)" if multirun else ""
        print(f"bnbench train: {problem}{which}", file=sys.stderr)
    recorded = [run for run in plan.runs if (run.folder / RECORD).exists()]
    broken = [o for o in outcomes if o.status in ("failed", "oom")]
    for outcome in broken:
        last = (outcome.error or "").strip().splitlines()[-1:]
        print(f"bnbench train: {outcome.config.run_name}: {outcome.status}: {''.join(last)}", file=sys.stderr)
    if broken:
        _say("The same command again trains only what is missing; the tracebacks are in the records.")
    if recorded and multirun:
        _show_report(plan)
    elif recorded:
        _say(f"record: {recorded[0].folder / RECORD}")
        _say(f"next:   bnbench report {recorded[0].dir}")
    return _exit_code(outcomes)


def _show_report(plan: Plan) -> None:
    """The reading half's table and page for this sweep's folder, then where to go from here."""
    from bnbench import report

    folder = plan.runs[0].dir
    report.main([folder])
    # The words that would run the study again, without its folder's name.
    words = " ".join(word for word in sys.argv[2:] if not word.startswith(("name=", "dir=", "seed=")))
    name = plan.runs[0].name
    _say("")
    _say("Next:")
    _say(f"  bnbench train {words} name={name}-5 seed=0,1,2,3,4       # two more seeds: narrower intervals")
    _say(f"  bnbench train {words} name={name}-mine data=image_folder data.root=FOLDER  # your images")
    _say(f"  wandb sync {folder}/*/wandb/offline-run-*              # see the curves on W&B (needs a login)")


def _status(config: RunConfig) -> str:
    try:
        return read_record(config.folder / RECORD).status
    except ValueError:
        return "refused"


def _exit_code(outcomes: Sequence[Any]) -> int:
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses:
        return 2
    return 1 if statuses & {"failed", "oom"} else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    from bnbench.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
