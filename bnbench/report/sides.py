"""Two folders side by side, on the page: what another machine or commit changed."""

from __future__ import annotations

from bnbench.analysis.answer import Answer, SideBySide
from bnbench.report.numbers import difference, ratio
from bnbench.report.table import NOTHING

HEADS = (
    "cell",
    "pairs",
    "error, right - left",
    "p (Holm)",
    "error of the right",
    "step time, right / left",
    "speed",
)


def section(answer: Answer) -> str:
    """Markdown: each cell that two folders hold, regressions first told. "" without any."""
    if not answer.sides:
        return ""
    parts = [
        "## Side by side\n",
        "The runs that two folders hold, paired by seed. A difference is beyond noise where its p, two-sided by "
        "Student's t and corrected by Holm over these rows, is below 0.05. Diverged runs are counted, not tested.\n",
    ]
    for left, right in dict.fromkeys((side.left, side.right) for side in answer.sides):
        own = [side for side in answer.sides if (side.left, side.right) == (left, right)]
        parts.append(f"Left: `{left}`, right: `{right}`. {summary(own)}\n")
        rows = [HEADS, ("---", *["---:"] * 3, "---", "---:", "---"), *(_row(side, answer) for side in own)]
        parts.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(parts)


def summary(sides: list[SideBySide]) -> str:
    """How many cells are worse or slower on the right."""
    worse = sum(side.outcome == "worse" for side in sides)
    lost = sum(side.outcome == "more diverged" for side in sides)
    slower = sum(side.speed_outcome == "worse" for side in sides)
    same = sum(side.outcome == "identical" for side in sides)
    words = [f"of {len(sides)} cells {worse} have a larger error and {slower} a longer step, beyond noise"]
    if lost:
        words.append(f"in {lost} more seeds diverge")
    if same:
        words.append(f"{same} have the same errors to the last digit")
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def _row(side: SideBySide, answer: Answer) -> tuple[str, ...]:
    cell = answer.cells[side.cell]
    name = f"{cell.line}{'' if cell.nbs is None else f' at NBS {cell.nbs}'}"
    return (
        f"{cell.panel}: {name}" if len(answer.panels) > 1 else name,
        str(side.pairs),
        difference(side.difference, 2),
        NOTHING if side.p_holm is None else f"{side.p_holm:.3f}",
        ("**worse**" if side.outcome == "worse" else side.outcome) + (f" ({side.note})" if side.note else ""),
        ratio(side.speed),
        "**slower**" if side.speed_outcome == "worse" else side.speed_outcome.replace("better", "faster"),
    )
