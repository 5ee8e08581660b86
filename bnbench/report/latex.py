"""The table of cells for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnbench.analysis.answer import Answer, CellView, Interval
from bnbench.report.numbers import decimals, measured, memory, missed, nbs_words
from bnbench.report.table import NOTHING

ONE_PAGE = 40  # rows that a float holds; more of them need longtable
NARROW = r"\small\setlength{\tabcolsep}{4pt}"  # all columns within the text of an article
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after \\ it would begin an argument, as * would
    "*": "{*}",
    NOTHING: "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# A heading, whether it is aligned right, and its entry.
Column = tuple[str, bool, Callable[[CellView], str]]


def table(answer: Answer) -> str:
    """A row for each cell, a block for each panel; a column in which nothing is known is left out.

    A float with `tabular`, or, where it would not fit on a page, a `longtable`. The packages that it needs stand in a
    comment on top.
    """
    cells = list(answer.cells.values())
    places = decimals(cell.error for cell in cells)
    columns: list[Column] = [
        ("Norm", False, lambda cell: escaped(cell.line)),
        ("NBS", True, lambda cell: escaped(nbs_words(cell))),
        (r"Error (\%)", True, lambda cell: _error(cell.error, places)),
        ("Seeds", True, _seeds),
        ("Images/s", True, lambda cell: escaped(measured(cell.images_per_s))),
        ("Step (ms)", True, lambda cell: escaped(measured(cell.step_ms))),
        ("Memory", True, lambda cell: escaped(memory(cell.peak_bytes))),
    ]
    columns = [each for each in columns if any(each[2](cell) not in ("", "--") for cell in cells)]
    rows = _rows(answer, columns)
    align = "".join("r" if right else "l" for _, right, _ in columns)
    head = " & ".join(heading for heading, _, _ in columns) + r" \\"
    long = len(cells) > ONE_PAGE
    caption = [rf"\caption{{{_caption(answer)}}}", r"\label{tab:bnbench}"]
    if long:
        begin = [
            r"\begingroup",
            NARROW,
            rf"\begin{{longtable}}{{{align}}}",
            f"{' '.join(caption)} \\\\",
            r"\toprule",
            head,
            r"\midrule",
        ]
        begin += [r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"]
        end = [r"\bottomrule", r"\end{longtable}", r"\endgroup"]
    else:
        begin = [r"\begin{table}", r"\centering", *caption, NARROW, rf"\begin{{tabular}}{{{align}}}"]
        begin += [r"\toprule", head, r"\midrule"]
        end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    packages = r"% \usepackage{booktabs, longtable}" if long else r"% \usepackage{booktabs}"
    return "\n".join([packages, *begin, *rows, *end, ""])


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, in one line."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _rows(answer: Answer, columns: Sequence[Column]) -> list[str]:
    rows: list[str] = []
    for panel in answer.panels:
        if len(answer.panels) > 1:
            rows += [r"\midrule"] if rows else []
            rows.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{escaped(panel.title)}}}}} \\")
        rows += [" & ".join(entry(cell) for _, _, entry in columns) + r" \\" for cell in panel.cells]
    return rows


def _error(error: Interval | None, places: int) -> str:
    if error is None:
        return "--"
    if error.low is None or error.high is None:
        return f"${error.mean:.{places}f}$"
    return rf"${error.mean:.{places}f} \pm {(error.high - error.low) / 2:.{places}f}$"


def _seeds(cell: CellView) -> str:
    """Completed runs, of as many where some are not."""
    completed, runs = cell.statuses.get("completed", 0), sum(cell.statuses.values())
    return str(completed) if completed == runs else f"{completed} of {runs}"


def _caption(answer: Answer) -> str:
    told = (
        r"mean $\pm$ half of the 95\,\% interval over seeds"
        if any(cell.error is not None and cell.error.n > 1 for cell in answer.cells.values())
        else "one seed"
    )
    where = f", {escaped(answer.panels[0].title)}" if len(answer.panels) == 1 else ""
    if any(missed(cell) for cell in answer.cells.values()):
        told += "; runs that did not complete enter no mean"
    return f"Validation error by norm and normalization batch size (NBS){where}: {told}."
