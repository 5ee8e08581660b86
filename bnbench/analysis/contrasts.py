"""Norms against a baseline, at each NBS, by runs paired by seed; corrected over named families."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bnbench import catalog
from bnbench.analysis.answer import CellView, Contrast, Interval, Outcome, Panel
from bnbench.analysis.overall import Errors, differences, overall
from bnbench.analysis.paired import (
    BOOTSTRAP_FROM,
    bootstrap,
    holm,
    improvement,
    paired,
    seeds_needed,
    untold,
)
from bnbench.analysis.question import Family
from bnbench.analysis.statistics import LEVEL

Diverged = Mapping[str, set[int]]


def contrasts(
    panels: Sequence[Panel],
    errors: Errors,
    diverged: Diverged,
    baseline: str = "bn",
    resolve: float = 1.0,
    family: Family = "line",
) -> list[Panel]:
    """The panels with their comparisons: each line against the baseline's at each NBS, and a line's NBS beyond a
    device's batch against that. Behind them the panels of `overall`, which have no cells.

    A line without NBS is compared at each NBS of the other. `family` says what is corrected together: a line's
    comparisons in a panel, all of a panel, or all of the page. A panel without the baseline takes its first line.
    """
    made = [_compared(panel, errors, diverged, baseline, resolve) for panel in panels]
    made += overall(made, errors, resolve)
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for i, panel in enumerate(made):
        for j, contrast in enumerate(panel.contrasts):
            if contrast.p is not None:
                key = {"line": (panel.key, contrast.family), "panel": (panel.key,), "page": ()}[family]
                groups.setdefault(key, []).append((i, j))
    found = [list(panel.contrasts) for panel in made]
    for places in groups.values():
        for (i, j), p_holm in zip(places, holm([found[i][j].p or 0.0 for i, j in places]), strict=True):
            found[i][j] = replace(found[i][j], p_holm=p_holm, outcome=_decided(found[i][j], p_holm))
    return [replace(panel, contrasts=tuple(own)) for panel, own in zip(made, found, strict=True)]


def detailed(panel: Panel, errors: Errors) -> Panel:
    """The panel's comparisons with what no verdict rests on: the probability of improvement, a bootstrap's interval."""
    return replace(panel, contrasts=tuple(_detailed(each, errors) for each in panel.contrasts))


def _detailed(contrast: Contrast, errors: Errors) -> Contrast:
    if contrast.difference is None:
        return contrast
    by_seed, likely = differences(contrast.sides, errors), []
    for left, right in contrast.sides:
        both = [[errors[key][seed] for seed in by_seed] for key in (left, right)]
        likely.append(improvement(*both))
    found = replace(contrast, improvement=statistics.fmean(likely))
    if len(by_seed) < BOOTSTRAP_FROM:
        return found
    low, high = bootstrap(list(by_seed.values()))
    return replace(found, bootstrap_low=low, bootstrap_high=high)


def lines(cells: Iterable[CellView]) -> dict[str, list[CellView]]:
    """The cells of each line by NBS, those without one first."""
    found: dict[str, list[CellView]] = {}
    for cell in cells:
        found.setdefault(cell.line, []).append(cell)
    return {line: sorted(own, key=lambda cell: cell.nbs or 0) for line, own in found.items()}


def baseline_of(panel: Panel, wanted: str) -> str | None:
    """The line that the others of a panel are held against: the wanted line or norm, else the catalog's first."""
    own = lines(panel.cells)
    if len(own) < 2 or wanted in own:
        return wanted if wanted in own else next(iter(own), None)
    of_norm = [line for line, cells in own.items() if cells[0].norm == wanted]
    known = [line for kind in catalog.NORMS for line, cells in own.items() if cells[0].norm == kind]
    return next(iter([*of_norm, *known, *own]), None)


def _compared(panel: Panel, errors: Errors, diverged: Diverged, baseline: str, resolve: float) -> Panel:
    if panel.ranged:
        return panel
    own, base = lines(panel.cells), baseline_of(panel, baseline)
    pairs: list[tuple[str, CellView, CellView]] = []
    for line, cells in own.items():
        if base is not None and line != base:
            pairs += [(f"{line} against {base}", *both) for both in _facing(cells, own[base])]
        device = next((cell for cell in cells if cell.span == "device"), None)
        wider = [cell for cell in cells if device is not None and (cell.nbs or 0) > (device.nbs or 0)]
        pairs += [(f"{line} over more images than a device's", cell, device) for cell in wider if device]
    found = tuple(_contrast(panel.key, *pair, errors, diverged, resolve) for pair in pairs)
    return replace(panel, contrasts=found)


def _facing(left: Sequence[CellView], right: Sequence[CellView]) -> list[tuple[CellView, CellView]]:
    return [
        (one, other)
        for one in left
        for other in right
        if one.nbs is None or other.nbs is None or one.nbs == other.nbs
    ]


def _contrast(
    panel: str,
    family: str,
    left: CellView,
    right: CellView,
    errors: Errors,
    diverged: Diverged,
    resolve: float,
) -> Contrast:
    ours, theirs = errors.get(left.key, {}), errors.get(right.key, {})
    seeds = sorted(ours.keys() & theirs.keys())
    blank = Contrast(
        panel=panel,
        family=family,
        left=left.key,
        right=right.key,
        left_label=_label(left),
        right_label=_label(right),
        nbs=left.nbs if right.nbs is None or left.line == right.line else right.nbs,
        pairs=len(seeds),
        outcome="too few pairs",
        sides=((left.key, right.key),),
    )
    lost = [
        f"{cell.line}{at(cell)} diverged in {len(diverged[cell.key])} of {cell.finished} runs"
        for cell in (left, right)
        if diverged.get(cell.key)
    ]
    if lost:  # what is left of a side is a choice, and not to be compared
        return replace(blank, outcome="lost", note=" and ".join(lost))
    found = paired([ours[seed] - theirs[seed] for seed in seeds])
    if found is None:
        return replace(blank, note=untold(len(seeds)))
    return replace(
        blank,
        outcome="not distinguishable",
        difference=Interval(found.mean, found.low, found.high, len(seeds)),
        p=found.p,
        effect=found.d_z,
        seeds_needed=seeds_needed(found.sd, resolve) if found.sd or found.mean == 0 else None,
    )


def at(cell: CellView) -> str:
    return "" if cell.nbs is None else f" at NBS {cell.nbs}"


def _label(cell: CellView) -> str:
    return cell.line + at(cell)


def _decided(contrast: Contrast, p_holm: float) -> Outcome:
    found = contrast.difference
    assert found is not None
    if p_holm >= 1 - LEVEL:
        return "not distinguishable"
    return "better" if found.mean < 0 else "worse"
