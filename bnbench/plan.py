"""`bnbench plan`: what `bnbench train` would do with the same words, and how long it would take. No torch.

compose + check -> plan -> preview, by what earlier records tell; starts nothing and writes nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from bnbench import train
from bnbench.config import RunConfig
from bnbench.folders import check_output, check_temporary
from bnbench.launch import check_world, place_given, speaks
from bnbench.sweep.plan import plan_single, plan_sweep

JSON = "--json"


def main(argv: Sequence[str]) -> int:
    """0, or 2 where a combination is invalid. ValueError for a mistake that the words make as a whole."""
    from bnbench.compose import read_request
    from bnbench.sweep.preview import Earlier, preview, read_earlier

    words = [word for word in argv if word != JSON]
    arguments = train.parse(words, "plan")
    if train.asks_hydra(arguments):
        return train.main(words)  # prints what is asked, and trains nothing
    request = read_request(arguments.overrides, arguments.multirun, arguments.config_dir, refuse=False)
    runs = request.runs
    plan = plan_sweep(runs) if request.multirun else plan_single(runs[0])
    for run in plan.runs:
        check_output(run.dir)
    if place_given() is None:
        check_temporary()
    if not speaks(place_given()):
        return 0
    remarks = _worlds(plan.runs)
    if request.sweeper is not None:
        remarks.append(
            f"{request.sweeper} chooses its runs as it goes: only the one that it starts from is here"
        )
    earlier = read_earlier(plan.runs) if plan.todo else Earlier([], [])
    command = shlex.join(["bnbench", "train", *words])
    found = preview(request, plan, earlier, remarks, command)
    if JSON in argv:
        print(json.dumps(found.as_json(), indent=1, allow_nan=False))
    else:
        from bnbench.sweep.preview_table import show

        show(found)
    return 2 if found.invalid else 0


def _worlds(runs: Sequence[RunConfig]) -> list[str]:
    """Why the command cannot be started here as it stands: no mistake, for it may be meant for another place."""
    said = []
    for run in runs:
        try:
            check_world(place_given(), run.trainer.devices, run.trainer.num_nodes)
        except ValueError as error:
            said.append(f"not to be started from here: {error}")
    return list(dict.fromkeys(said))
