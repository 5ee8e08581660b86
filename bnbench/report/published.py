"""Published numbers beside ours, on the page."""

from __future__ import annotations

from bnbench.analysis.answer import Answer
from bnbench.report.table import NOTHING


def section(answer: Answer) -> str:
    """Markdown, "" where no cell has the model, data, norm and batch of a published one."""
    if not answer.published:
        return ""
    lines = [
        ("published", "error %", "ours", "source", "known from", "what differs"),
        ("---", "---:", "---:", "---", "---", "---"),
    ]
    for row in answer.published:
        ours = NOTHING if row.ours is None else f"{row.ours.mean:.1f}"
        if row.ours is not None and row.ours.high is not None:
            ours += f" ± {row.ours.high - row.ours.mean:.1f}"
        source = f"[{row.source}]({row.url})"
        lines.append((row.what, f"{row.value:g}", ours, source, row.evidence, row.differs))
    return "## Published numbers\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
