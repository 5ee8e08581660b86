"""Comparisons over several panels at once: the same norms, on several networks or data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bnbench.analysis.answer import Contrast, Interval, Panel
from bnbench.analysis.paired import paired, seeds_needed, untold

Errors = Mapping[str, Mapping[int, float]]  # by cell, then by seed


def overall(panels: Sequence[Panel], errors: Errors, resolve: float) -> list[Panel]:
    """For panels that differ in model and data alone and compare the same, one without cells that has their means.

    A comparison that two panels or more make is made over them: the mean over these panels of the differences of each
    seed. Its interval, Student's over the seeds, holds for other seeds on these networks and data, and not for others.
    Seeds are not drawn anew panel by panel, as rliable's stratified bootstrap does (Agarwal et al. 2021): a seed's
    runs may go alike in all panels, and then such an interval covers too little.
    Nothing is corrected yet. A comparison's cells are those of the first panel.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Panel]] = {}
    for panel in panels:
        groups.setdefault(tuple(panel.cells[0].settings.items()), []).append(panel)
    found = []
    for settings, group in groups.items():
        same: dict[tuple[str, str, str, int | None], list[Contrast]] = {}
        for panel in group:
            for each in panel.contrasts:
                same.setdefault((each.family, each.left_label, each.right_label, each.nbs), []).append(each)
        by_key = {panel.key: panel for panel in group}
        together: dict[tuple[str, ...], list[list[Contrast]]] = {}  # what the same panels compare
        for own in same.values():
            if len(own) > 1:
                together.setdefault(tuple(each.panel for each in own), []).append(own)
        for keys, comparisons in together.items():
            title = _title([by_key[key] for key in keys], dict(settings))
            contrasts = tuple(_mean(title, own, errors, resolve) for own in comparisons)
            found.append(Panel(title, title, (), contrasts))
    return found


def _mean(title: str, panels: Sequence[Contrast], errors: Errors, resolve: float) -> Contrast:
    """One comparison over the panels that make it."""
    sides = tuple(side for each in panels for side in each.sides)
    by_seed = differences(sides, errors)
    blank = replace(
        panels[0],
        panel=title,
        pairs=len(by_seed),
        outcome="too few pairs",
        difference=None,
        p=None,
        p_holm=None,
        effect=None,
        seeds_needed=None,
        note=untold(len(by_seed), f" over {len(panels)} panels"),
        sides=sides,
    )
    lost = [each for each in panels if each.outcome == "lost"]
    if lost:
        return replace(blank, outcome="lost", note=f"a side diverged in {len(lost)} of {len(panels)} panels")
    found = paired(list(by_seed.values()))
    if found is None:
        return blank
    return replace(
        blank,
        outcome="not distinguishable",
        difference=Interval(found.mean, found.low, found.high, len(by_seed)),
        p=found.p,
        effect=found.d_z,
        seeds_needed=seeds_needed(found.sd, resolve) if found.sd or found.mean == 0 else None,
        note=f"mean over {len(panels)} panels",
    )


def differences(sides: Sequence[tuple[str, str]], errors: Errors) -> dict[int, float]:
    """By seed, of those that all cells have: left - right, the mean over the sides."""
    pairs = [(errors.get(left, {}), errors.get(right, {})) for left, right in sides]
    seeds = sorted(set.intersection(*(left.keys() & right.keys() for left, right in pairs)))
    return {seed: statistics.fmean(left[seed] - right[seed] for left, right in pairs) for seed in seeds}


def _title(panels: Sequence[Panel], settings: Mapping[str, str]) -> str:
    """`resnet8 and vgg11 on digits, together`."""
    after = "".join(f", {key} {value}" for key, value in settings.items())
    named = [panel.title.removesuffix(after).partition(" on ") for panel in panels]
    models, data = (list(dict.fromkeys(each[index] for each in named)) for index in (0, 2))
    return f"{_listed(models)} on {_listed(data)}{after}, together"


def _listed(names: Sequence[str]) -> str:
    """All of them: two titles must not read alike."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
