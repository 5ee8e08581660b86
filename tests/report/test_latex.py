"""The LaTeX table: well formed whatever names say, a row for each cell."""

from __future__ import annotations

import re

import pytest

from bnbench.report.latex import ONE_PAGE, escaped, table
from tests.report import answers


@pytest.mark.parametrize("name", answers.MADE)
def test_each_cell_is_a_row_of_as_many_columns_as_the_head_has(name: str) -> None:
    answer, _ = answers.MADE[name]()
    text = table(answer)
    align = re.search(r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}", text)
    assert align is not None
    rows = [
        line
        for line in text.splitlines()
        if line.endswith(r"\\") and not line.startswith((r"\multi", r"\caption"))
    ]
    heads = 2 if len(answer.cells) > ONE_PAGE else 1
    assert len(rows) == heads + len(answer.cells)
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(align[1])}
    for environment in re.findall(r"\\begin\{(\w+)\}", text):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    assert len(re.findall(r"\\multicolumn", text)) == (len(answer.panels) if len(answer.panels) > 1 else 0)


def test_what_means_something_to_latex_means_nothing_in_a_name() -> None:
    everything = "".join(map(chr, range(32, 127)))
    for text in (everything, answers.HOSTILE, *everything):
        made = escaped(text)
        bare = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\{[\[*]\}", "", made)
        assert not set(bare) & set('\\{}&%$#_~^<>|"[*'), made
    assert escaped("a\n b\t c") == "a b c"
    assert escaped("r_max 3, 50%") == r"r\_max 3, 50\%"


def test_a_mean_has_its_interval_and_one_seed_has_none() -> None:
    answer, _ = answers.whole()
    cell = answer.panels[0].cells[0]
    assert cell.error is not None and cell.error.high is not None
    half = cell.error.high - cell.error.mean
    assert rf"${cell.error.mean:.1f} \pm {half:.1f}$" in table(answer)
    alone, _ = answers.bare()
    assert "$13.0$" in table(alone) and "one seed" in table(alone)


def test_lost_runs_are_counted_beside_the_seeds() -> None:
    text = table(answers.whole()[0])
    assert "& 2 of 3 &" in text and "& 0 of 3 &" in text and "did not complete" in text
    assert "did not complete" not in table(answers.bare()[0])
