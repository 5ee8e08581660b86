"""The verdict of a panel in words, made of its comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from bnbench.analysis.answer import CellView, Contrast, Crossover, Interval, Outcome, Panel
from bnbench.analysis.costs import CONTROL
from bnbench.analysis.lr_range import TABLE
from bnbench.analysis.statistics import LEVEL

FEW = 2  # comparisons of one outcome that are each told; of more, the range and the largest


def sentences(panel: Panel, resolve: float, cells: Mapping[str, CellView] | None = None) -> tuple[str, ...]:
    """What the comparisons of a panel say: each line in turn, then what wider statistics buy, and what is open.

    `cells`: those that are compared, by key; None: the panel's own.
    """
    if panel.ranged:
        runs = sum(sum(cell.statuses.values()) for cell in panel.cells)
        tests = "1 learning-rate range test" if runs == 1 else f"{runs:,} learning-rate range tests"
        return (f"{tests}: what came of it is under '{TABLE}'; no error is measured.",)
    found = []
    families: dict[str, list[Contrast]] = {}
    for contrast in panel.contrasts:
        families.setdefault(contrast.family, []).append(contrast)
    if cells is None:
        cells = {cell.key: cell for cell in panel.cells}
    wider: list[str] = []
    for contrasts in families.values():
        ordered = sorted(contrasts, key=lambda contrast: contrast.nbs or 0)
        if cells[ordered[0].left].line == cells[ordered[0].right].line:
            wider += [_wider(contrast, cells) for contrast in ordered]
        else:
            found.append(_line(ordered, panel, cells))
    return (*found, *wider, *_open(panel, resolve))


def _line(contrasts: Sequence[Contrast], panel: Panel, cells: Mapping[str, CellView]) -> str:
    """One line against the baseline over NBS."""
    left, right = cells[contrasts[0].left].line, cells[contrasts[0].right].line
    measured = sorted({contrast.nbs for contrast in panel.contrasts if contrast.nbs is not None})
    parts = []
    for outcome, run in groupby(contrasts, key=lambda contrast: contrast.outcome):
        own = list(run)
        said = _said(outcome, own, _named(left), _named(right))
        parts.append(f"{_where(own, contrasts, measured)}{said}{_fewer(own, cells)}")
    text = "; ".join(parts)
    for crossover in panel.crossovers:
        if (crossover.left, crossover.right) == (left, right):
            text += f"; the two meet near NBS {nbs_number(crossover.nbs)}, {_between(crossover)}"
    return f"{text[0].upper()}{text[1:]}." if text.startswith(("at ", "no ", "too ", "the ")) else f"{text}."


def _between(crossover: Crossover) -> str:
    low, high = (None if end is None else nbs_number(end) for end in (crossover.low, crossover.high))
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"above {low}" if high is None else f"below {high}"


def nbs_number(value: float) -> str:
    """`3.4`, `14`, `1,024`."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _named(line: str) -> str:
    """A line in a sentence, where `none beats gn` would say the opposite."""
    return "the network without norms" if line == CONTROL else line


def _where(own: Sequence[Contrast], among: Sequence[Contrast], measured: Sequence[int]) -> str:
    """At which of the NBS: `at NBS 8 and below, `; "" where there is none to tell. `measured`: all of the panel."""
    sizes = [contrast.nbs for contrast in own if contrast.nbs is not None]
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"at NBS {sizes[0]}, "
    between = {size for size in measured if sizes[0] < size < sizes[-1]}
    if between <= set(sizes):
        if len(own) == len(among):
            return f"at every NBS from {sizes[0]} to {sizes[-1]}, "
        if own[-1] is among[-1]:
            return f"at NBS {sizes[0]} and above, "
        if own[0] is among[0]:
            return f"at NBS {sizes[-1]} and below, "
    return f"at NBS {_and([str(size) for size in sizes])}, "


def _said(outcome: Outcome, own: Sequence[Contrast], left: str, right: str) -> str:
    if outcome == "lost":
        return f"no comparison: {_and(list(dict.fromkeys(contrast.note for contrast in own)))}"
    if outcome == "too few pairs":
        return f"too little to compare {left} with {right} ({_and(list(dict.fromkeys(c.note for c in own)))})"
    told = [contrast for contrast in own if contrast.difference is not None]
    if outcome == "not distinguishable":
        shown = (
            _and([_interval(c.difference) for c in told]) if len(told) <= FEW else _range(told, signed=True)
        )
        corrected = " after Holm's correction" if any(map(_corrected, told)) else ""
        return f"{left} and {right} are not distinguishable{corrected} ({left} - {right}: {shown} points)"
    winner, loser = (left, right) if outcome == "better" else (right, left)
    if len(told) > FEW:
        return f"{winner} beats {loser} by {_range(told)} points of error"
    return f"{winner} beats {loser} by {_and([_size(c.difference) for c in told])} points of error"


def _fewer(contrasts: Sequence[Contrast], cells: Mapping[str, CellView]) -> str:
    """` (by 3 of 5 seeds)` where not all of a side's runs are in the differences."""
    told = [each for each in contrasts if each.difference is not None]
    runs = [max(sum(cells[key].statuses.values()) for key in (each.left, each.right)) for each in told]
    if all(each.pairs >= all_of for each, all_of in zip(told, runs, strict=True)):
        return ""
    pairs = sorted({each.pairs for each in told})
    return f" (by {pairs[0]}{f' to {pairs[-1]}' if len(pairs) > 1 else ''} of {max(runs)} seeds)"


def _corrected(contrast: Contrast) -> bool:
    """Whether it would have been a verdict alone, and the others of its family keep it from being one."""
    p, corrected = contrast.p, contrast.p_holm
    return p is not None and corrected is not None and p < 1 - LEVEL <= corrected


def _wider(contrast: Contrast, cells: Mapping[str, CellView]) -> str:
    """What statistics shared beyond a device's batch buy, and their cost."""
    wide, device = cells[contrast.left], cells[contrast.right]
    head = (
        f"Sharing {wide.line}'s statistics over {wide.nbs} images ({wide.span}, across ranks) rather than a device's "
        f"{device.nbs}"
    )
    if contrast.difference is None:
        bought = f" cannot be judged ({contrast.note})"
    elif contrast.outcome == "not distinguishable":
        bought = f" makes no distinguishable difference ({_interval(contrast.difference)} points of error)"
    else:
        verb = "lowers" if contrast.outcome == "better" else "raises"
        bought = f" {verb} the error by {_size(contrast.difference)} points"
    if not wide.step_ms or not device.step_ms:
        return f"{head}{bought}."
    added, share = wide.step_ms - device.step_ms, 100 * (wide.step_ms / device.step_ms - 1)
    return f"{head}{bought}, for {added:+,.{0 if abs(added) >= 10 else 1}f} ms a step ({share:+.0f}%)."


def _open(panel: Panel, resolve: float) -> list[str]:
    """How many seeds would settle what is open."""
    undecided = [
        c
        for c in panel.contrasts
        if c.outcome == "not distinguishable"
        and c.difference is not None
        and c.difference.low != c.difference.high
    ]
    needed = [c.seeds_needed for c in undecided]
    known = [n for n in needed if n is not None]
    if not undecided or not known:
        return []
    have = max(c.pairs for c in undecided)
    few = f"{min(known)}" if min(known) == max(known) else f"{min(known)} to {max(known)}"
    one = len(undecided) == 1
    beyond = f" ({len(needed) - len(known)} of them far more)" if len(known) < len(needed) else ""
    return [
        f"Not distinguishable is not equal: {len(undecided)} of {len(panel.contrasts)} comparisons "
        f"{'is' if one else 'are'} open with {'' if one else 'up to '}{have} seeds; to find a true difference of "
        f"{points(resolve)} {'it takes' if one else 'they take'} {few}{beyond}, at a power of 80%, each by itself, and "
        "by the spread of these seeds, which few seeds tell roughly."
    ]


def _range(contrasts: Sequence[Contrast], signed: bool = False) -> str:
    """`1.2 to 4.4 (largest at NBS 2: 4.4 [3.1, 5.7])`."""
    means = [c.difference.mean for c in contrasts if c.difference is not None]
    largest = max(contrasts, key=lambda c: abs(c.difference.mean) if c.difference else 0.0)
    told = _interval(largest.difference) if signed else _size(largest.difference)
    low, high = (min(means), max(means)) if signed else (min(map(abs, means)), max(map(abs, means)))
    sign = "+" if signed else ""
    where = "" if largest.nbs is None else f" at NBS {largest.nbs}"
    return f"{low:{sign}.1f} to {high:{sign}.1f} (largest{where}: {told})"


def _size(found: Interval | None) -> str:
    """How large a difference is, whatever its sign: `4.4 [3.1, 5.7]`."""
    assert found is not None and found.low is not None and found.high is not None
    ends = sorted((abs(found.low), abs(found.high)))
    decimals = 2 if ends[1] - ends[0] < 0.2 else 1
    return f"{abs(found.mean):.{decimals}f} [{ends[0]:.{decimals}f}, {ends[1]:.{decimals}f}]"


def _interval(found: Interval | None) -> str:
    assert found is not None and found.low is not None and found.high is not None
    decimals = 2 if found.high - found.low < 0.2 else 1
    numbers = [
        f"{round(value, decimals) + 0.0:+.{decimals}f}" for value in (found.mean, found.low, found.high)
    ]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def points(value: float) -> str:
    """`1 point`, `0.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"
