"""The page as its readers have it: in a browser, on a desk and on a phone, in the light and in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.browser.conftest import Chromium, Opened
from tests.report.answers import HOSTILE

pytestmark = pytest.mark.browser

Open = Callable[..., Opened]
VIEWS = [("whole", width, theme) for width in (1280, 390) for theme in ("light", "dark")]
VIEWS += [("hostile", 390, "dark"), ("bare", 1280, "light")]
TABLE = "#cell-list"
COLUMN = "error %"


@pytest.mark.parametrize(("name", "width", "theme"), [*VIEWS, ("large", 1280, "light")])
def test_it_opens_quietly_by_itself_and_draws_every_chart(
    opened: Open, name: str, width: int, theme: str
) -> None:
    found = opened(name, width=width, theme=theme)
    assert found.said == []
    assert found.asked == [found.file.as_uri()]
    drawn = found.page.eval_on_selector_all(
        ".plot",
        """plots => plots.map(plot => {
            const marks = plot.querySelectorAll('.scatterlayer path, .barlayer path');
            const sizes = [...marks].map(mark => mark.getBoundingClientRect()).map(box => box.width + box.height);
            return [plot.id, sizes.some(size => size > 0)];
        })""",
    )
    assert drawn and not [key for key, marks in drawn if not marks]


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("name", ["whole", "hostile"])
def test_nothing_is_wider_than_the_screen_but_what_scrolls_by_itself(
    opened: Open, name: str, width: int
) -> None:
    page = opened(name, width=width).page
    _open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.eval_on_selector_all(
        ".plot", "plots => plots.map(p => p.querySelector('svg').getBoundingClientRect().right)"
    )
    assert max(plots) <= width


def test_a_phone_shows_the_outcome_of_each_comparison_without_scrolling(opened: Open) -> None:
    page = opened("whole", width=390, theme="light").page
    outcome = page.locator("#contrasts thead th", has_text="outcome").bounding_box()
    assert outcome["x"] + outcome["width"] <= 390


@pytest.mark.parametrize(("name", "width", "theme"), VIEWS)
def test_the_accessibility_check_finds_nothing_serious(
    opened: Open, chromium: Chromium, name: str, width: int, theme: str
) -> None:
    page = opened(name, width=width, theme=theme).page
    _open_all(page)
    page.evaluate(chromium.axe)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 20  # it did look
    told = [
        (each["id"], each["impact"], node["target"], node["failureSummary"])
        for each in found["violations"]
        for node in each["nodes"][:3]
        if each["impact"] in ("serious", "critical")
    ]
    assert not told, json.dumps(told, indent=1)


def test_a_heading_sorts_its_column_by_number_both_ways_and_what_is_missing_last(opened: Open) -> None:
    page = opened("whole").page
    before = _column(page, COLUMN)
    button = page.locator(f"{TABLE} thead button", has_text=COLUMN)
    button.click()
    assert _sorted_by(page, "ascending") == [COLUMN]
    rising = _column(page, COLUMN)
    assert rising != before
    assert sorted(rising) == sorted(before)
    numbers, missing = _numbers(rising)
    assert numbers == sorted(numbers)
    assert missing and rising[len(numbers) :] == missing
    button.focus()
    page.keyboard.press("Enter")
    assert _sorted_by(page, "descending") == [COLUMN]
    falling, missing = _numbers(_column(page, COLUMN))
    assert falling == numbers[::-1]
    assert _column(page, COLUMN)[len(falling) :] == missing
    button.press("Space")
    page.wait_for_selector(f"{TABLE}:not(:has([aria-sort]))")
    assert _column(page, COLUMN) == before
    page.locator(f"{TABLE} thead button", has_text="norm").click()
    assert _sorted_by(page, "ascending") == ["norm"]


def test_the_filter_keeps_the_rows_with_all_words_and_says_how_many(opened: Open) -> None:
    page = opened("whole").page
    box = page.get_by_label("Filter cells")
    every = _rows(page)
    box.fill("BN diverged")
    shown = [text for text in every if "bn" in text and "diverged" in text]
    assert 0 < len(shown) < len(every)
    assert _rows(page) == shown
    told = page.locator(".dt-info[role=status]")
    assert told.get_by_text(f"{len(shown)} of {len(every)} rows").is_visible()
    page.locator(f"{TABLE} thead button", has_text=COLUMN).click()
    assert _sorted_by(page, "ascending") == [COLUMN]
    assert sorted(_rows(page)) == sorted(shown)
    box.fill("circle")  # what is in a row's markup, and not in its words
    assert _rows(page) == ["No row has all these words."]
    assert told.get_by_text(f"0 of {len(every)} rows").is_visible()
    box.fill("")
    assert sorted(_rows(page)) == sorted(every)
    assert not "".join(told.all_inner_texts()).strip()


def test_a_key_of_a_legend_hides_its_line_in_every_chart_and_shows_it_again(opened: Open) -> None:
    page = opened("whole").page
    lines = (
        "id => document.getElementById(id)._fullData.filter(t => t.visible === true).map(t => t.legendgroup)"
    )
    charts = page.eval_on_selector_all(".plot", "plots => plots.map(plot => plot.id)")
    having = [each for each in charts if "gn" in page.evaluate(lines, each)]
    assert len(having) > 4
    key = page.locator(".legend button", has_text="gn (no NBS)").first
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert not [each for each in charts if "gn" in page.evaluate(lines, each)]
    key.press("Space")
    assert key.get_attribute("aria-pressed") == "true"
    assert [each for each in charts if "gn" in page.evaluate(lines, each)] == having


def test_learning_curves_take_another_axis(opened: Open) -> None:
    page = opened("whole").page
    curve = "document.querySelector('#curves .plot')"
    by_epoch = page.evaluate(f"{curve}._fullData.map(trace => [...trace.x])")
    page.get_by_role("radio", name="training time").check()
    by_time = page.evaluate(f"{curve}._fullData.map(trace => [...trace.x])")
    assert by_epoch != by_time
    assert [len(x) for x in by_epoch] == [len(x) for x in by_time]
    assert "training time" in page.evaluate(f"{curve}.layout.xaxis.title.text")


def test_charts_follow_the_theme_and_keep_what_the_reader_chose(opened: Open) -> None:
    page = opened("whole").page
    page.locator(".legend button", has_text="gn (no NBS)").first.click()
    colour = "document.querySelector('.plot').layout.font.color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    for _ in range(100):
        if page.evaluate(colour) != light:
            break
        page.wait_for_timeout(50)
    assert page.evaluate(colour) != light
    hidden = (
        "document.querySelector('.plot')._fullData.filter(t => t.legendgroup === 'gn').every(t => !t.visible)"
    )
    assert page.evaluate(hidden)


def test_on_paper_all_is_open_light_and_within_the_page_and_then_as_it_was(opened: Open) -> None:
    page = opened("whole", theme="dark").page
    state = """() => [
        [...document.querySelectorAll('details')].map(each => each.open),
        [...document.querySelectorAll('.plot')].map(
            each => [each.layout.font.color, each.querySelector('svg').clientWidth]
        ),
    ]"""
    before = page.evaluate(state)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    details, plots = page.evaluate(state)
    assert details and all(details)
    assert {colour for colour, _ in plots} == {"#444444"}
    assert max(width for _, width in plots) <= 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(state) == before
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    assert page.evaluate(state) == before


@pytest.mark.parametrize(("name", "begins"), [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
def test_a_chart_is_saved_with_a_legend_and_on_white(opened: Open, name: str, begins: bytes) -> None:
    found = opened("whole", theme="dark")
    with found.page.expect_download() as download:
        found.page.get_by_role("button", name=f"Save as {name}").first.click()
    image = download.value.path().read_bytes()
    assert image.startswith(begins)
    if name == "SVG":
        assert b"legendtext" in image and b"rgb(255, 255, 255)" in image
    assert found.said == []
    assert [address for address in found.asked if not address.startswith("blob:")] == [found.file.as_uri()]


def test_without_scripts_the_tables_are_there_and_nothing_pretends_to_work(opened: Open) -> None:
    page = opened("whole", scripts=False).page
    assert page.locator(f"{TABLE} tbody tr").first.is_visible()
    assert page.locator("button, input").count() == 0
    assert not page.locator(".plot").first.is_visible()
    assert page.get_by_text("The charts need JavaScript").is_visible()
    page.locator("#costs summary").click()
    assert page.locator("#costs tbody tr").first.is_visible()


def test_text_of_records_stays_text(opened: Open) -> None:
    found = opened("hostile")
    page = found.page
    assert page.locator("h1").inner_text() == HOSTILE.strip()
    # What it would have made, had it been read as HTML, or by Plotly in a chart.
    assert page.locator("body :is(b, img), .plot a").count() == 0
    assert (
        page.eval_on_selector_all("a", "links => links.map(link => link.protocol)").count("javascript:") == 0
    )
    # Plotly makes bold what stands in this tag, and does not show the tag.
    texts = page.eval_on_selector_all(".plot text", "texts => texts.map(text => text.textContent)")
    assert any("<b>" in text for text in texts)
    hosts = page.eval_on_selector_all("a", "links => links.map(link => link.host).filter(Boolean)")
    assert set(hosts) <= {"wandb.ai", "arxiv.org"}
    assert found.said == [] and found.asked == [found.file.as_uri()]


def _open_all(page: Any) -> None:
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")


def _rows(page: Any) -> list[str]:
    """The words of the rows that are there to be read."""
    rows = page.locator(f"{TABLE} tbody tr").all()
    return [row.inner_text() for row in rows if row.is_visible()]


def _column(page: Any, name: str) -> list[str]:
    heads = page.locator(f"{TABLE} thead th").all_inner_texts()
    index = next(at for at, head in enumerate(heads) if head.strip() == name)
    rows: Sequence[Any] = page.locator(f"{TABLE} tbody tr").all()
    return [row.locator("th, td").nth(index).inner_text() for row in rows]


def _numbers(column: Sequence[str]) -> tuple[list[float], list[str]]:
    known = [float(text.split()[0]) for text in column if text != "–"]
    return known, [text for text in column if text == "–"]


def _sorted_by(page: Any, direction: str) -> list[str]:
    """The headings that say that their column is sorted, once one is in this direction."""
    page.wait_for_selector(f"{TABLE} thead th[aria-sort={direction}]")
    return [head.strip() for head in page.locator(f"{TABLE} thead th[aria-sort]").all_inner_texts()]
