"""The page: one HTML file with everything in it, which opens without a network.

Its scripts are Plotly, which draws the charts, and DataTables, which sorts and filters the tables, both embedded
whole, and our own (`templates/page.js`), which sets them to work; without them the tables are plain. A policy in the
file's head lets no other script run and no request leave.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from collections import Counter
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bnbench.analysis.answer import Answer
from bnbench.report.context import HealthRow, PageContext, RunRow
from bnbench.report.numbers import count

from . import words
from .prose import inline
from .sections import Sections

__all__ = ["HealthRow", "PageContext", "RunRow", "render"]

TEMPLATES = Path(__file__).parents[1] / "templates"
DATATABLES = Path(__file__).parents[1] / "vendor" / "datatables.net" / "dataTables.min.js"
PLOTLY = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"


def render(answer: Answer, context: PageContext) -> str:
    """The page as text, for a file in the folder that the links of `context` are relative to."""
    made = Sections(answer, context)
    verdict, others = made.verdict(), made.others()
    charts = [chart for section in (verdict, *others) for part in section.parts for chart in part.charts]
    libraries = [PLOTLY, DATATABLES] if charts else [DATATABLES]
    scripts = [*map(_library, libraries), _template("page.js")]
    first = "document.documentElement.dataset.script = 'on'"  # before anything is laid out
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": inline, "json": script_json}
    return environment.get_template("page.html.j2").render(
        answer=answer,
        context=context,
        counts=_counts(answer),
        verdict=verdict,
        sections=[section for section in others if not section.empty],
        missing=[section for section in others if section.empty],
        charts={chart.key: chart.spec for chart in charts},
        nothing_compared=words.NOTHING_COMPARED,
        style=Markup(_template("page.css")),
        first_script=Markup(first),
        scripts=[Markup(script) for script in scripts],
        policy=policy([first, *scripts]),
    )


def policy(scripts: list[str]) -> str:
    """Only these scripts run, and nothing is fetched, whatever else may stand in the file."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> Markup:
    """JSON that may stand in a script element: no text in it ends the element or begins a comment.

    Raises ValueError for a number that JSON has not (nan, inf).
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _library(file: Traversable) -> str:
    # What would end or hide a script can only stand in its strings, where the escaped form means the same.
    return file.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _counts(answer: Answer) -> str:
    """`15 runs in 5 cells: 14 completed, 1 diverged`."""
    statuses: Counter[str] = Counter()
    for cell in answer.cells.values():
        statuses.update(cell.statuses)
    told = ", ".join(f"{runs:,} {status}" for status, runs in statuses.items() if runs)
    return f"{count(statuses.total(), 'run')} in {count(len(answer.cells), 'cell')}" + (
        f": {told}" if told else ""
    )
