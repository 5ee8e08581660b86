"""The page as text: whole in itself, safe against what records say, complete, and small enough."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from bnbench.report.html import RunRow, render, script_json
from bnbench.report.html.cell_tables import told_apart
from bnbench.report.html.prose import blocks
from bnbench.report.html.tables import MOST, local, web
from tests.report import answers
from tests.report.answers import HOSTILE

VOID = {"meta", "link", "input", "br", "hr", "img", "path"}


class Parsed(HTMLParser):
    """The elements of a page in order, each with its attributes, and the text of each `script`, `h2` and table row."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def values(self, attribute: str) -> list[str]:
        return [found[attribute] or "" for _, found in self.elements if attribute in found]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(*made()) for name, made in answers.MADE.items()}


@pytest.fixture(scope="module", params=list(answers.MADE))
def parsed(request: pytest.FixtureRequest, pages: dict[str, str]) -> Parsed:
    return Parsed(pages[request.param])


def test_it_asks_for_nothing(parsed: Parsed) -> None:
    assert not parsed.values("src") and not parsed.values("srcset") and not parsed.values("action")
    links = [found for tag, found in parsed.elements if tag == "link"]
    assert [found["href"] for found in links] == ["data:,"]
    style = parsed.texts["style"][0]
    assert "url(" not in style and "@import" not in style


def test_only_its_own_scripts_may_run(parsed: Parsed) -> None:
    (policy,) = [
        str(found["content"])
        for _, found in parsed.elements
        if found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]
    kinds = [found for tag, found in parsed.elements if tag == "script"]
    scripts = [
        text
        for text, found in zip(parsed.texts["script"], kinds, strict=True)
        if found.get("type") != "application/json"
    ]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert not [name for _, found in parsed.elements for name in found if name.startswith("on")]


def test_every_reference_within_the_page_leads_somewhere(parsed: Parsed) -> None:
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in parsed.values("href") if link.startswith("#")} <= set(ids)
    assert set(parsed.values("aria-labelledby")) <= set(ids)
    plots = [found["id"] for _, found in parsed.elements if found.get("class") == "plot"]
    (specs,) = [text for text in parsed.texts["script"] if text.startswith("{")]
    assert sorted(json.loads(specs)) == sorted(map(str, plots))
    assert parsed.open == []


def test_every_section_is_there_or_says_what_would_give_it(pages: dict[str, str]) -> None:
    full, bare = (Parsed(pages[name]) for name in ("whole", "bare"))
    sections = {found["id"] for tag, found in full.elements if tag == "section"} - {"answer"}
    assert "missing" not in sections and len(sections) == 14
    left = {found["id"] for tag, found in bare.elements if tag == "section"} - {"answer", "missing"}
    named = {found["id"] for tag, found in bare.elements if tag == "dt"}
    assert left | named == sections and not left & named
    assert not [text for page in (full, bare) for text in page.texts["main"] if "{" in text or "}" in text]
    assert "epochs.csv" in bare.texts["dd"][sorted(named, key=bare.values("id").index).index("time")]


@pytest.mark.parametrize("name", answers.MADE)
def test_the_same_answer_gives_the_same_bytes(name: str, pages: dict[str, str]) -> None:
    assert render(*answers.MADE[name]()) == pages[name]


def test_what_a_record_says_is_text(pages: dict[str, str]) -> None:
    hostile, whole = Parsed(pages["hostile"]), Parsed(pages["whole"])
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in whole.elements}
    assert hostile.texts["h1"] == [HOSTILE]
    shown = " ".join(hostile.texts["main"])
    assert "{{ 1 + 1 }}" in shown and "<b>bold</b>" in shown
    for link in hostile.values("href"):
        assert re.match(r"https://(wandb\.ai|arxiv\.org)/|[#.\w]|data:,", link), link
        assert not link.startswith(("javascript:", "//"))


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "\u2028", "&lt;", HOSTILE])
def test_json_in_a_script_ends_nothing_and_is_what_it_was(text: str) -> None:
    made = script_json({text: [text, 1.5, None]})
    assert not set("<>&") & set(made)
    assert json.loads(made) == {text: [text, 1.5, None]}


def test_links_are_relative_or_of_the_web() -> None:
    assert local("../a b/record.json") == "../a%20b/record.json"
    assert ":" not in local("javascript:alert(1)")
    assert not local("//host/record.json").startswith("//")
    assert "?" not in local("a?b#c") and "#" not in local("a?b#c")
    assert web("https://wandb.ai/a/b") == "https://wandb.ai/a/b"
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "//host",
        "file:///etc",
        "",
        None,
        "http://[",
        "x",
    ):
        assert web(address) is None


def test_a_chart_has_its_numbers_in_a_table_of_its_section(pages: dict[str, str]) -> None:
    for part in re.split(r"<section ", pages["whole"])[1:]:
        if 'class="plot"' in part and 'id="answer"' not in part and 'id="tradeoffs"' not in part:
            assert "<caption" in part, part[:80]


def test_ten_thousand_runs_fit_and_what_is_cut_is_told() -> None:
    answer, context = answers.large()
    assert len(context.runs) >= 9_900
    begun = time.perf_counter()
    page = render(answer, context)
    assert time.perf_counter() - begun < 20  # a second or two, on a machine that does nothing else
    assert len(page.encode()) < 10e6
    parsed = Parsed(page)
    told = [text for text in parsed.texts["p"] if "rows are shown" in text]
    assert f"{MOST} of {len(context.runs):,} rows are shown; runs.csv has all." in told
    assert f"{MOST} of {len(answer.cells):,} rows are shown; cells.csv has all." in told
    assert any("further panels of" in text for text in parsed.texts["p"])
    assert all(each.title in page for each in answer.panels)  # each has its verdict


def test_of_runs_beyond_the_limit_those_that_did_not_complete_are_kept() -> None:
    answer, context = answers.bare()
    runs = [RunRow(f"run-{at}", "completed", f"{at}/record.json", 10.0) for at in range(2 * MOST)]
    lost = [RunRow(f"lost-{at}", "failed", f"lost-{at}/record.json", None, "a reason") for at in range(3)]
    page = render(answer, dataclasses.replace(context, runs=[*runs, *lost]))
    assert all(f">{run.name}<" in page for run in lost)
    assert f">run-{MOST - 4}<" in page and f">run-{MOST - 3}<" not in page


def test_panels_are_told_apart_by_the_words_that_differ() -> None:
    titles = ["resnet8 on digits, 2 ranks", "resnet20 on digits, 2 ranks"]
    assert told_apart(titles) == ["resnet8", "resnet20"]
    assert told_apart(["a on digits, 2 ranks", "a on digits, 4 ranks"]) == ["2", "4"]
    assert told_apart(["a", "a b"]) == ["a", "b"]
    assert told_apart(["only"]) == [""] and told_apart([]) == []
    assert len(set(told_apart(["a b a", "a a", "b"]))) == 3


def test_markdown_becomes_the_pages_own_tables_and_nothing_of_records_html() -> None:
    found = blocks(
        "## Rates\n\nSaid **so**.\n\n| norm | LR |\n| --- | ---: |\n| bn \\| x | 1,000.5 |\n", "key"
    )
    assert [bool(block.table) for block in found] == [False, False, True]
    table = found[2].table
    assert table is not None
    assert (table.caption, [column.numeric for column in table.columns]) == ("Rates", [False, True])
    assert [(value.text, value.sort) for value in table.rows[0]] == [("bn | x", None), ("1,000.5", 1000.5)]
    assert found[0].html == "<h3>Rates</h3>\n"
    assert not blocks("# only a heading", "key", headings=False)
    made = "".join(
        block.html for block in blocks(HOSTILE + "\n\n![a](https://b/c) <https://d> [e](f)", "key")
    )
    assert not set(re.findall(r"<(\w+)", made)) & {"script", "img", "a", "b"}


def test_it_needs_neither_torch_nor_pandas_nor_a_network() -> None:
    program = (
        "import socket, sys; socket.socket = None; from tests.report.answers import whole;"
        "from bnbench.report.html import render; render(*whole());"
        "heavy = {'torch', 'pandas', 'matplotlib.pyplot', 'plotly.graph_objs', 'kaleido'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_runs_that_are_lost_count_in_a_column_of_their_own(pages: dict[str, str]) -> None:
    whole, bare = Parsed(pages["whole"]), Parsed(pages["bare"])
    assert "stability" in " ".join(whole.texts["th"])
    assert "stability" not in " ".join(bare.texts["th"]), "all completed"
