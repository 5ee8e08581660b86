"""The verdict on the page: in words, and the comparisons that it rests on."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Sequence

from bnbench.analysis.answer import Answer, Contrast
from bnbench.analysis.sentences import points
from bnbench.report.numbers import difference
from bnbench.report.table import NOTHING

LEGEND = (
    "Runs are paired by seed: the same first weights and the same order of images. Differences are left - right in "
    "points of validation error, with their 95% interval (Student's t). p is two-sided and corrected by Holm over its "
    "family: each family has a chance of 5% for a false verdict of its own (--family page: the whole page). A side "
    "is better where the corrected p is below 0.05; else the two are not distinguishable, which is not the same as "
    "equal. d_z: the mean difference over the differences' standard deviation. P(better): how often a run of the left "
    "had the lower error. Seeds needed: pairs with which one test by itself finds a true difference of {resolve} "
    "with a power of 80%, at this spread, which few seeds tell roughly; a corrected test takes more."
)
WIDTH = 80
HEADS = ("comparison", "pairs", "difference", "p (Holm)", "d_z", "P(better)", "seeds needed", "outcome")


def section(answer: Answer) -> str:
    """Markdown: what the comparisons of each panel say."""
    parts = ["## Verdict\n"]
    for panel in answer.judged:
        told = panel.sentences or ("Nothing to compare here: one line, or no two runs with one seed.",)
        if len(answer.judged) > 1:
            parts.append(f"### {panel.title}\n")
        parts.append("".join(f"- {sentence}\n" for sentence in told))
    return "\n".join(parts)


def lines(answer: Answer) -> list[str]:
    """What a terminal shows: the verdict of each panel, a sentence a paragraph."""
    shown = []
    for panel in answer.judged:
        if panel.sentences and len(answer.judged) > 1:
            shown.append(f"{panel.title}:")
        for sentence in panel.sentences:
            shown += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return shown


def table(answer: Answer) -> str:
    """Markdown: every comparison, by family. "" without any."""
    if not any(panel.contrasts for panel in answer.judged):
        return ""
    parts = ["## Comparisons\n", f"{LEGEND.format(resolve=points(answer.resolve))}\n"]
    for panel in answer.judged:
        if panel.contrasts and len(answer.judged) > 1:
            parts.append(f"### {panel.title}\n")
        for family in dict.fromkeys(contrast.family for contrast in panel.contrasts):
            own = [contrast for contrast in panel.contrasts if contrast.family == family]
            rows = [HEADS, ("---", *["---:"] * 6, "---"), *map(_row, own)]
            parts.append(
                f"{family}: {len(own)} comparison{'s' if len(own) > 1 else ''}{_corrected(answer, own)}.\n"
            )
            parts.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(parts)


def _corrected(answer: Answer, own: Sequence[Contrast]) -> str:
    """Over how many comparisons p is corrected."""
    among = [each for panel in answer.judged for each in panel.contrasts]
    if answer.family == "line":
        among = list(own)
    elif answer.family == "panel":
        among = [each for each in among if each.panel == own[0].panel]
    tested = sum(each.p is not None for each in among)
    where = {"line": "", "panel": " of the panel", "page": " of the page"}[answer.family]
    return f", p corrected over {tested}{where}" if tested else ""


def _row(contrast: Contrast) -> tuple[str, ...]:
    return (
        f"{contrast.left_label} against {contrast.right_label}",
        str(contrast.pairs),
        difference(contrast.difference, _decimals(contrast)),
        NOTHING
        if contrast.p_holm is None
        else "< 0.001"
        if contrast.p_holm < 0.001
        else f"{contrast.p_holm:.3f}",
        NOTHING if contrast.effect is None else f"{contrast.effect:.1f}",
        NOTHING if contrast.improvement is None else f"{contrast.improvement:.2f}",
        NOTHING if contrast.seeds_needed is None else str(contrast.seeds_needed),
        contrast.outcome + (f" ({contrast.note})" if contrast.note else ""),
    )


def _decimals(contrast: Contrast) -> int:
    found = contrast.difference
    narrow = (
        found is not None
        and found.low is not None
        and found.high is not None
        and found.high - found.low < 0.4
    )
    return 2 if narrow else 1


def to_csv(answer: Answer) -> str:
    """A row for each comparison, with every field of `Contrast`."""
    out = io.StringIO()
    names = [
        field.name for field in dataclasses.fields(Contrast) if field.name not in ("difference", "sides")
    ]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "difference", "low", "high"])
    for contrast in (contrast for panel in answer.judged for contrast in panel.contrasts):
        found = contrast.difference
        ends = ["", "", ""] if found is None else [found.mean, found.low, found.high]
        writer.writerow([*(getattr(contrast, name) for name in names), *ends])
    return out.getvalue()
