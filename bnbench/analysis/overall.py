"""Comparisons over several panels at once: the same norms, on several networks or data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bnbench.analysis.answer import Contrast, Interval, Panel
from bnbench.analysis.paired import BOOTSTRAP_FROM, bootstrap, improvement, paired, seeds_needed, untold

Errors = Mapping[str, Mapping[int, float]]  # by cell, then by seed


def overall(panels: Sequence[Panel], errors: Errors, resolve: float) -> list[Panel]:
    """For panels that differ in model and data alone and compare the same, one without cells that has their means.

    A comparison that two panels or more make is made over them: the mean over these panels of the differences of each
    seed. Its interval holds for other seeds on these networks and data, and not for others. From ten pairs on it is
    that of a bootstrap stratified by panel, as rliable's (Agarwal et al. 2021); before, Student's over the seeds.
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
    sides = [(errors.get(each.left, {}), errors.get(each.right, {})) for each in panels]
    seeds = sorted(set.intersection(*(left.keys() & right.keys() for left, right in sides)))
    blank = replace(
        panels[0],
        panel=title,
        pairs=len(seeds),
        outcome="too few pairs",
        difference=None,
        p=None,
        p_holm=None,
        effect=None,
        improvement=None,
        seeds_needed=None,
        note=untold(len(seeds), f" over {len(panels)} panels"),
    )
    lost = [each for each in panels if each.outcome == "lost"]
    if lost:
        return replace(blank, outcome="lost", note=f"a side diverged in {len(lost)} of {len(panels)} panels")
    strata = [[left[seed] - right[seed] for seed in seeds] for left, right in sides]
    by_seed = [statistics.fmean(own) for own in zip(*strata, strict=True)]
    found = paired(by_seed)
    if found is None:
        return blank
    resampled = len(seeds) >= BOOTSTRAP_FROM
    low, high = bootstrap(strata) if resampled else (found.low, found.high)
    return replace(
        blank,
        outcome="not distinguishable",
        difference=Interval(found.mean, low, high, len(seeds)),
        p=found.p,
        effect=found.d_z,
        improvement=statistics.fmean(
            improvement([left[seed] for seed in seeds], [right[seed] for seed in seeds])
            for left, right in sides
        ),
        seeds_needed=seeds_needed(found.sd, resolve) if found.sd or found.mean == 0 else None,
        note=f"mean over {len(panels)} panels" + (", bootstrap stratified by panel" if resampled else ""),
    )


def _title(panels: Sequence[Panel], settings: Mapping[str, str]) -> str:
    """`resnet8 and vgg11 on digits, together`."""
    after = "".join(f", {key} {value}" for key, value in settings.items())
    named = [panel.title.removesuffix(after).partition(" on ") for panel in panels]
    models, data = (list(dict.fromkeys(each[index] for each in named)) for index in (0, 2))
    return f"{_listed(models)} on {_listed(data)}{after}, together"


def _listed(names: Sequence[str]) -> str:
    """All of them: two titles must not read alike."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
