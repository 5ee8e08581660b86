"""The claims' verdicts: for the page, as CSV, and for a terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Iterable, Sequence

from bnbench.analysis.answer import Interval
from bnbench.analysis.claims import ClaimResult, Verdict
from bnbench.report.numbers import difference, number, probability
from bnbench.report.table import NOTHING

WIDTH = 80
HEADS = [
    "comparison",
    "measure",
    "left",
    "right",
    "pairs",
    "difference or ratio",
    "d_z",
    "p (Holm)",
    "verdict",
]

LEGEND = (
    "Runs are paired by seed, all else equal. Differences are left - right, with the 95% t interval over pairs; "
    "steps, learning rates and measures of drift are compared as ratios left / right, on a log scale. d_z is "
    "Cohen's d of the paired differences (mean over standard deviation). p is two-sided, and corrected by Holm "
    "over the comparisons of one claim. A comparison is supported, or not supported, where its interval leaves "
    "out no difference and the corrected p is below 0.05, by the side it lies on; else not distinguishable, "
    "which is not the same as equal. A claim is supported where all of its comparisons are; one on the other "
    "side is a counterexample. Rows of context are outside the correction and have no verdict."
)


def section(results: Sequence[ClaimResult]) -> str:
    """Markdown: each claim with its verdict, its comparisons and what to know about them. "" without any."""
    if not results:
        return ""
    parts = ["## Claims\n", f"{LEGEND} The numbers in full: [claims.csv](claims.csv).\n"]
    for result in results:
        parts.append(f"### {result.claim}: {result.verdict}\n")
        parts.append(f"{said(result)}\n")
        parts.append(_table(result.rows))
        parts.append("".join(f"- {note}\n" for note in remarks(result.rows)))
    return "\n".join(part for part in parts if part)


def said(result: ClaimResult) -> str:
    """A claim as a question, its evidence, and how runs count that were lost."""
    states = f"{result.states[0].upper()}{result.states[1:]}"
    return f"{states}? {result.runs} run{'' if result.runs == 1 else 's'} of evidence. {result.lost}"


def remarks(rows: Sequence[Verdict]) -> list[str]:
    """What to know about rows, said once; with the row it is about, where it is not about all."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for note in filter(None, (row.missing, *row.notes)):
            about.setdefault(note, []).append(_what(row))
    return [
        note if len(rows) == len(found) else f"{'; '.join(dict.fromkeys(found))}: {note}"
        for note, found in about.items()
    ]


def to_csv(results: Iterable[ClaimResult]) -> str:
    """A row for each comparison, with every field of `Verdict`; notes joined by "; "."""
    names = [field.name for field in dataclasses.fields(Verdict)]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for row in result.rows:
            writer.writerow(dataclasses.asdict(row) | {"notes": "; ".join(row.notes)})
    return out.getvalue()


def lines(results: Iterable[ClaimResult]) -> list[str]:
    """What a terminal shows: a claim a line, its comparisons below it."""
    shown = []
    for result in results:
        shown += _wrapped(f"{result.verdict.upper()}: {result.states}", f"claim {result.claim}: ")
        for row in result.rows:
            numbers = f"{_effect(row)}, " if row.effect is not None else ""
            why = f" ({row.missing})" if row.missing else ""
            shown += _wrapped(f"{_what(row)}: {row.measure} {numbers}{row.verdict}{why}", "  ")
    return shown


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(first + text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _table(rows: Sequence[Verdict]) -> str:
    rule = ["---", "---", *["---:"] * 6, "---"]
    lines = [HEADS, rule, *map(words, rows)]
    return "".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |\n" for line in lines)


def words(row: Verdict) -> list[str]:
    """A comparison as people read it, by `HEADS`."""
    return [
        _what(row),
        row.measure,
        number(row.left_mean),
        number(row.right_mean),
        str(row.pairs),
        _effect(row),
        NOTHING if row.d_z is None else f"{row.d_z:.1f}",
        probability(row.p_holm),
        row.verdict,
    ]


def _what(row: Verdict) -> str:
    setting = f" ({row.setting})" if row.setting else ""
    return f"{row.left} against {row.right}{setting}"


def _effect(row: Verdict) -> str:
    if row.effect is None or row.low is None or row.high is None:
        return NOTHING
    if row.ratio:
        return f"x {row.effect:.3g} [{row.low:.3g}, {row.high:.3g}]"
    decimals = 2 if row.high - row.low < 0.4 else 1
    return difference(Interval(row.effect, row.low, row.high, row.pairs), decimals)
