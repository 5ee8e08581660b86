"""From collected records to the answer: panels, comparisons, verdicts in words, time and cost."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from bnbench.analysis.answer import Answer, Panel, TimeToTarget
from bnbench.analysis.contrasts import contrasts, detailed
from bnbench.analysis.costs import norm_costs
from bnbench.analysis.crossover import crossovers
from bnbench.analysis.files import Files
from bnbench.analysis.panels import errors_by_seed, panels
from bnbench.analysis.progress import Course, courses, curves, times_to
from bnbench.analysis.published import beside
from bnbench.analysis.question import DEFAULT, Question
from bnbench.analysis.sentences import sentences
from bnbench.analysis.sides import side_by_side

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.collect import Collected


def outline(collected: Collected, cells: pl.DataFrame, question: Question = DEFAULT) -> list[Panel]:
    """The panels with their cells, their verdicts, and where lines meet the baseline's: all that a figure shows.

    Behind them those over several panels, which have no cells.
    Raises ValueError where no norm or line of the records is the question's baseline.
    """
    shown = panels(collected.runs, cells)
    known = sorted({name for panel in shown for cell in panel.cells for name in (cell.norm, cell.line)})
    if question.baseline not in known and question.baseline != DEFAULT.baseline:
        raise ValueError(
            f"--baseline {question.baseline} is in none of these records: choose one of {', '.join(known)}"
        )
    errors = errors_by_seed(collected.runs)
    diverged = _diverged(collected.runs)
    compared = contrasts(shown, errors, diverged, question.baseline, question.resolve, question.family)
    return [replace(panel, crossovers=tuple(crossovers(panel)) if panel.cells else ()) for panel in compared]


def answer(
    collected: Collected,
    cells: pl.DataFrame,
    shown: list[Panel],
    question: Question = DEFAULT,
    files: Files | None = None,
) -> Answer:
    """`shown` is the `outline` of them for this question."""
    runs = collected.runs
    errors = errors_by_seed(runs)
    judged = [detailed(panel, errors) for panel in shown]
    shown, together = [one for one in judged if one.cells], [one for one in judged if not one.cells]
    # What a step takes is each panel's own.
    untimed = {cell.key: replace(cell, step_ms=None) for panel in shown for cell in panel.cells}
    together = [replace(panel, sentences=sentences(panel, question.resolve, untimed)) for panel in together]
    twice = _twice(collected)
    shown = [
        replace(panel, sentences=(*sentences(panel, question.resolve), *_of_two_folders(panel, twice)))
        for panel in shown
    ]
    shown[0] = replace(shown[0], sentences=(*shown[0].sentences, *_of_folders_apart(collected, twice)))
    found = courses(runs, files or Files())
    return Answer(
        title=_title(cells),
        panels=tuple(shown),
        overall=tuple(together),
        curves=tuple(curves(found)),
        times=tuple(time for panel in shown for time in _times(panel, found, question.target)),
        costs=tuple(cost for panel in shown for cost in norm_costs(panel, runs)),
        published=tuple(beside(shown, runs)),
        sides=tuple(side_by_side(collected.sides)),
        baseline=question.baseline,
        family=question.family,
        resolve=question.resolve,
    )


def _title(cells: pl.DataFrame) -> str:
    models, data, norms = (", ".join(dict.fromkeys(cells[key])) for key in ("model", "data", "norm"))
    return f"{models} on {data}: {norms}"


def _twice(collected: Collected) -> dict[str, list[str]]:
    """By cell, the folder whose run counts, of each run that several folders hold."""
    if collected.sides.is_empty():
        return {}
    folders: dict[tuple[str, int], set[str]] = {}
    for cell, seed, root in collected.sides.select("cell", "seed", "root").iter_rows():
        folders.setdefault((cell, seed), set()).add(root)
    found: dict[str, list[str]] = {}
    for cell, seed, root in collected.runs.select("cell", "seed", "root").iter_rows():
        if len(folders.get((cell, seed), ())) > 1:
            found.setdefault(cell, []).append(root)
    return found


def _of_two_folders(panel: Panel, twice: dict[str, list[str]]) -> list[str]:
    used = [root for cell in panel.cells for root in twice.get(cell.key, [])]
    if not used:
        return []
    runs = f"{len(used):,} run{'s are' if len(used) > 1 else ' is'}"
    return [f"{runs} in several folders: here those of {' and '.join(dict.fromkeys(used))} count."]


def _of_folders_apart(collected: Collected, twice: dict[str, list[str]]) -> list[str]:
    """Why nothing stands side by side, of several folders."""
    folders = collected.sides["root"].n_unique()
    if twice or folders < 2:
        return []
    return [
        f"The {'two' if folders == 2 else folders} folders hold no run in common: their cells stand in one table."
    ]


def _diverged(runs: pl.DataFrame) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for cell, seed, status in runs.select("cell", "seed", "status").iter_rows():
        if status == "diverged":
            found.setdefault(cell, set()).add(seed)
    return found


def _times(panel: Panel, found: dict[str, list[Course]], target: float | None) -> list[TimeToTarget]:
    means = [cell.error.mean for cell in panel.cells if cell.error is not None]
    if not means:
        return []
    # Half of the cells come to the median, so that neither all are at it at once nor few ever.
    return times_to(
        found,
        {cell.key: cell.finished for cell in panel.cells if cell.key in found},
        math.ceil(10 * statistics.median(means)) / 10 if target is None else target,
    )
