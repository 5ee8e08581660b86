"""What `bnbench train` says at the end: what came of it, what is missing and the command for just that, where to go on.

No torch.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Sequence

from bnbench.config import RunConfig
from bnbench.config.data import FOLDERS
from bnbench.dotted import is_dotted
from bnbench.launch import command, place_given, speaks
from bnbench.records import BROKEN, RECORD, Record, is_finished, read_record
from bnbench.sweep.outcome import Outcome
from bnbench.sweep.plan import Plan
from bnbench.sweep.stopping import STOPPED
from bnbench.waiting import data_wait_remark

ENOUGH_SEEDS = 5  # more are offered below it
TRY_LATER = 75  # sysexits.h's EX_TEMPFAIL: what is missing is in another process's hands


def last_words(
    plan: Plan,
    outcomes: Sequence[Outcome],
    argv: Sequence[str],
    sweep: bool,
    stopped: int | None,
) -> int:
    """Print them and return the exit code. `argv` is what the command was, of a sweep or of one run; `stopped`: the
    exit code of a signal that asked it to stop."""
    if not speaks(place_given()):
        return 0  # the first rank has the same outcomes, and torchrun would cut off what it tells
    for problem in dict.fromkeys(o.error for o in outcomes if o.status == "refused"):
        count = sum(o.status == "refused" and o.error == problem for o in outcomes)
        which = f" ({count} of {len(plan.runs)} runs did not start)" if sweep else ""
        print(f"bnbench train: {problem}{which}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.status in (*BROKEN, "preempted"):
            last = (outcome.error or "").strip().splitlines()[-1:]
            when = " in an earlier start of this job" if outcome.earlier else ""
            line = f"{outcome.config.run_name}: {outcome.status}{when}: {''.join(last)}"
            print(f"bnbench train: {line}", file=sys.stderr)
    _say_missing(plan, outcomes, [*command(place_given()), *argv])
    recorded = [run for run in plan.runs if (run.folder / RECORD).exists()]
    remark = data_wait_remark(_readable(recorded))
    if remark:
        _say(remark)
    if recorded and sweep:
        _show_report(recorded, argv, all_there=all(is_finished(run.folder) for run in plan.runs))
    elif recorded:
        _say(f"record: {recorded[0].folder / RECORD}")
        _say(f"next:   bnbench report {shlex.quote(recorded[0].dir)}")
    return _exit_code(plan, outcomes, stopped)


def _say_missing(plan: Plan, outcomes: Sequence[Outcome], words: Sequence[str]) -> None:
    """The runs without a finished record by what became of them, and the command that trains just those."""
    became = {outcome.config.folder: outcome.status for outcome in outcomes}
    lacking = [run for run in plan.runs if not is_finished(run.folder)]
    if not lacking:
        return
    counts = Counter(became.get(run.folder, "not begun") for run in lacking)
    called = {"refused": "did not start", "elsewhere": "being trained by another process"}
    parts = ", ".join(f"{count} {called.get(status, status)}" for status, count in counts.items())
    told = f"\nMissing: {len(lacking)} of {len(plan.runs)} run(s): {parts}."
    refused = counts["refused"]
    mend = " Mend first what is said above of those that did not start" if refused else ""
    if refused == len(lacking):  # the same words would be refused again
        _say(f"{told}{mend}.")
        return
    these = f"; the same command trains the other {len(lacking) - refused}"
    _say(f"{told}{mend}{these if refused else ' The same command trains just these'}:")
    _say(f"  {shlex.join(words)}")
    if counts["failed"]:
        _say("(the tracebacks are in the records)")


def _readable(runs: Sequence[RunConfig]) -> list[Record]:
    """The runs' records but for those that the report will name as broken."""
    found = []
    for run in runs:
        with contextlib.suppress(ValueError):
            found.append(read_record(run.folder / RECORD))
    return found


def _show_report(runs: Sequence[RunConfig], argv: Sequence[str], all_there: bool) -> None:
    """The reading half's table and page for a sweep's folders, then where to go from here."""
    from bnbench import report

    folders = list(dict.fromkeys(run.dir for run in runs))
    try:
        report.main(folders)
    except Exception:  # the runs are done, and their records outlive it
        traceback.print_exc()
        _say(
            f"the report failed by a bug of bnbench; the records are kept: bnbench report {shlex.join(folders)}"
        )
    same = [word for word in argv if not word.startswith("seed=")]
    other = [word for word in same if not ("=" in word and word.startswith(("name=", "dir=", "data")))]
    following = []
    more = _more_seeds({run.seed for run in runs})
    if more and all_there:  # else it would train what is missing, too
        following.append(f"  {_command(same, f'seed={more}')}")
        following.append("      narrower intervals: what is finished is kept, only new seeds train")
    if not any(run.data.name in FOLDERS or is_dotted(run.data.name) for run in runs):
        following.append(f"  {_command(other, 'data=image_folder', 'data.root=FOLDER', 'name=my-images')}")
        following.append("      the same on your own images")
    if runs[0].logger.name == "wandb" and runs[0].logger.mode == "offline":
        following.append(f"  bnbench sync {shlex.quote(folders[0])}")
        following.append("      the curves on W&B (after wandb login)")
    if following:
        _say("\n".join(["\nNext:", *following]))


def _more_seeds(seeds: set[int]) -> str:
    """Those there are and the next ones; empty where there are enough."""
    new = (seed for seed in itertools.count() if seed not in seeds)
    wanted = [*sorted(seeds), *itertools.islice(new, max(0, ENOUGH_SEEDS - len(seeds)))]
    return ",".join(map(str, wanted)) if len(wanted) > len(seeds) else ""


def _command(argv: Sequence[str], *more: str) -> str:
    """The command with other words: its options may stand anywhere."""
    return shlex.join([*command(place_given()), *argv, *more])


def _exit_code(plan: Plan, outcomes: Sequence[Outcome], stopped: int | None) -> int:
    """What a starter has to know first: there is more to do once it was stopped; a run broke in this start; others have
    the rest in their hands; a user's mistake keeps the rest from being done.
    """
    lacking = {run.folder for run in plan.runs if not is_finished(run.folder)}
    begun = {outcome.config.folder for outcome in outcomes}
    statuses = {outcome.status for outcome in outcomes if not outcome.earlier}
    if stopped is not None and lacking:
        return stopped
    if "preempted" in statuses or lacking - begun:  # another rank heard the signal
        return STOPPED
    if statuses & set(BROKEN):
        return 1
    if "elsewhere" in statuses:
        return TRY_LATER
    return 2 if "refused" in statuses else 0


def _say(line: str) -> None:
    print(line, flush=True)
