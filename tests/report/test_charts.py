"""The charts: valid for Plotly, true to the answer, and saying what they leave out."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from typing import Any

import pytest

from bnbench.analysis.answer import Answer, CellView, Curve, Interval, Panel, TimeToTarget
from bnbench.report import charts
from bnbench.report.charts import Chart
from bnbench.report.charts.base import MOST_ROWS, log_axis
from bnbench.report.charts.curves import MOST_CHARTS, MOST_POINTS
from bnbench.report.charts.error import MOST_CROSSOVERS
from bnbench.report.context import PageContext
from bnbench.report.html.sections import Sections
from bnbench.report.style import looks
from tests.report import answers


def all_charts(answer: Answer, context: PageContext) -> list[Chart]:
    made = Sections(answer, context)
    sections = made.verdict(), *made.others()
    return [chart for section in sections for part in section.parts for chart in part.charts]


def main_chart(panel: Panel) -> Chart:
    return charts.error_against_nbs(panel, looks(cell.line for cell in panel.cells), "chart")


def traces(chart: Chart, line: str, mode: str) -> list[dict[str, Any]]:
    return [trace for trace in chart.data if trace.get("legendgroup") == line and trace["mode"] == mode]


@pytest.fixture(scope="module")
def panel() -> Panel:
    return answers.whole()[0].panels[0]


@pytest.mark.parametrize("name", answers.MADE)
def test_plotly_knows_every_word_of_every_chart(name: str) -> None:
    from plotly.graph_objects import Figure

    for chart in all_charts(*answers.MADE[name]()):
        Figure(data=chart.data, layout=chart.layout)  # raises for a property or value that it has not
        json.dumps(chart.spec, allow_nan=False)
        assert chart.summary.endswith(".")
        for x in chart.axes.values():
            assert [len(values) for values in x] == [len(trace["y"]) for trace in chart.data]


def test_a_norm_has_one_colour_in_all_charts() -> None:
    answer, context = answers.whole()
    expected = looks(cell.line for each in answer.panels for cell in each.cells)
    for chart in all_charts(answer, context):
        for trace in chart.data:
            if trace.get("legendgroup") in expected and "marker" in trace:
                assert trace["marker"]["color"] == expected[trace["legendgroup"]].colour


def test_the_main_chart_has_each_cells_mean_interval_and_seeds(panel: Panel) -> None:
    chart = main_chart(panel)
    for line in answers.WITH_NBS:
        cells = [cell for cell in panel.cells if cell.line == line]
        (drawn,) = traces(chart, line, "lines+markers")
        assert [None if y is None else pytest.approx(y, rel=1e-4) for y in drawn["y"]] == [
            cell.error and cell.error.mean for cell in cells
        ]
        for at, cell in enumerate(cells):
            if cell.error is not None and cell.error.high is not None:
                assert drawn["y"][at] + drawn["error_y"]["array"][at] == pytest.approx(
                    cell.error.high, rel=1e-3
                )
                assert drawn["y"][at] - drawn["error_y"]["arrayminus"][at] == pytest.approx(
                    cell.error.low, rel=1e-3
                )
            # Beside its own tick: two norms at one NBS do not hide each other, and stay nearer to it than to another.
            assert abs(math.log2(drawn["x"][at] / cell.nbs)) < 0.5
        seeds = next(trace for trace in traces(chart, line, "markers") if "yaxis" not in trace)
        assert sorted(seeds["y"]) == pytest.approx(sorted(e for cell in cells for e in cell.errors), rel=1e-4)
    assert len({x for line in answers.WITH_NBS for x in traces(chart, line, "lines+markers")[0]["x"]}) == 8


def test_a_norm_without_nbs_is_one_level_over_the_whole_axis(panel: Panel) -> None:
    chart = main_chart(panel)
    level = next(cell for cell in panel.cells if cell.line == "gn")
    band, line = traces(chart, "gn", "lines")
    assert len(set(line["y"])) == 1 and line["y"][0] == pytest.approx(level.error.mean, rel=1e-4)  # type: ignore[union-attr]
    low, high = (10**end for end in chart.layout["xaxis"]["range"])
    assert min(line["x"]) < low and max(line["x"]) > high
    assert set(answers.SIZES) <= set(line["x"])  # so that a pointer finds it at each
    assert (min(band["y"]), max(band["y"])) == pytest.approx((level.error.low, level.error.high), rel=1e-4)  # type: ignore[union-attr]


def test_a_cell_without_a_completed_run_is_a_cross_and_breaks_its_line(panel: Panel) -> None:
    (crosses,) = [trace for trace in main_chart(panel).data if trace.get("yaxis") == "y2"]
    assert crosses["legendgroup"] == "brn r_max 3"
    assert "3 diverged" in crosses["text"][0]
    (line,) = traces(main_chart(panel), "brn r_max 3", "lines+markers")
    assert line["y"][0] is None and line["connectgaps"] is False


def test_crossovers_are_marked_with_their_intervals_and_no_more_than_fit(panel: Panel) -> None:
    crossing = panel.crossovers[0]
    chart = main_chart(panel)
    bars = [trace for trace in chart.data if trace.get("yaxis") == "y3"]
    assert len(bars) == len(panel.crossovers) and not chart.notes
    assert bars[0]["x"] == [crossing.low, crossing.nbs, crossing.high]
    assert panel.crossovers[1].low is None and bars[1]["marker"]["symbol"][0] == "triangle-left"
    assert "[< 2, 5.2]" in chart.layout["annotations"][1]["text"].replace("&lt;", "<")
    many = dataclasses.replace(panel, crossovers=panel.crossovers * 4)
    assert f"{MOST_CROSSOVERS} of 8 crossovers" in main_chart(many).notes[0]


def test_an_error_is_never_drawn_below_zero_nor_above_a_hundred() -> None:
    wide = [Interval(50.0, -400.0, 500.0, 2), Interval(0.1, -2.0, 2.2, 2)]
    for nbs in (2, None):
        cells = [
            CellView(str(at), "p", str(at), "bn", nbs, None, {}, error, (error.mean,) * 2, {"completed": 2})
            for at, error in enumerate(wide)
        ]
        low, high = main_chart(Panel("p", "p", tuple(cells))).layout["yaxis"]["range"]
        assert low == 0 and 50 < high < 120


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_json_has_not_is_a_gap(bad: float) -> None:
    cell = CellView(
        "c", "p", "bn", "bn", 2, "ghost", {}, Interval(bad, bad, bad, 2), (bad, bad), {"completed": 2}
    )
    json.dumps(main_chart(Panel("p", "p", (cell,))).spec, allow_nan=False)


def test_only_what_is_on_the_front_is_outlined(panel: Panel) -> None:
    chart = charts.pareto(panel, looks(cell.line for cell in panel.cells), "chart")
    assert chart is not None
    outlined = sum(width > 0 for trace in chart.data for width in trace["marker"]["line"]["width"])
    assert outlined == sum(cell.on_front for cell in panel.cells) > 0
    sizes = {
        cell.peak_bytes: size
        for trace in chart.data
        for cell, size in zip(
            [each for each in panel.cells if each.line == trace["legendgroup"] and each.error],
            trace["marker"]["size"],
            strict=True,
        )
    }
    assert [sizes[known] for known in sorted(sizes)] == sorted(sizes.values())  # more memory, a larger marker


def test_rows_beyond_the_limit_are_told(panel: Panel) -> None:
    cell = panel.cells[1]
    views = {str(at): dataclasses.replace(cell, key=str(at)) for at in range(MOST_ROWS + 3)}
    times = [
        TimeToTarget(key, 20.0, 3, 3, Interval(float(at + 1), None, None, 3), None)
        for at, key in enumerate(views)
    ]
    random.Random(0).shuffle(times)
    chart = charts.time_to_target("p", times, views, looks([cell.line]), "chart")
    assert [trace["x"][0] for trace in chart.data] == list(range(1, MOST_ROWS + 1))  # the quickest are kept
    assert f"{MOST_ROWS} of {MOST_ROWS + 3} cells" in chart.notes[0]


def test_long_curves_keep_their_ends_and_every_nbs_has_the_norms_without_one() -> None:
    draw = random.Random(0)
    sizes = [2**power for power in range(1, MOST_CHARTS + 3)]
    cells = [dataclasses.replace(answers.cell("p", "bn", 2, draw), key=str(nbs), nbs=nbs) for nbs in sizes]
    cells.append(answers.cell("p", "gn", None, draw))
    panel = Panel("p", "p", tuple(cells))
    curves: dict[str, Curve] = {cell.key: answers.curve(cell, draw, 3 * MOST_POINTS) for cell in cells}
    drawn, legend, notes = charts.learning_curves(panel, curves, looks(["bn", "gn"]), "chart")
    assert len(drawn) == MOST_CHARTS and len(notes) == 2 and len(legend) == 2
    assert (drawn[0].title, drawn[-1].title) == (f"NBS {sizes[0]}", f"NBS {sizes[-1]}")
    assert len({chart.key for chart in drawn}) == MOST_CHARTS
    for chart in drawn:
        lines = [trace for trace in chart.data if trace.get("fill") is None]
        assert [trace["legendgroup"] for trace in lines] == ["bn", "gn"]
        for trace in lines:
            assert len(trace["y"]) == MOST_POINTS
        gn = curves[cells[-1].key]
        assert (lines[1]["y"][0], lines[1]["y"][-1]) == pytest.approx((gn.error[0], gn.error[-1]), rel=1e-4)
        assert chart.axes["step"][-1][-1] == gn.step[-1]


def test_a_step_without_a_control_is_drawn_whole_and_one_quicker_than_it_not_below_zero(panel: Panel) -> None:
    cell = panel.cells[1]
    views, look = {cell.key: cell}, looks([cell.line])
    cost = answers._cost(cell, 30.0)  # the control took longer than the norm's step
    for control, left in ((None, cell.step_ms), (30.0, 0.0)):
        chart = charts.step_times("p", [dataclasses.replace(cost, control_ms=control)], views, look, "chart")
        grey, own = chart.data
        assert own["x"][0] == pytest.approx(left, rel=1e-4)
        assert grey["x"][0] + own["x"][0] == pytest.approx(cell.step_ms, rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (9.0, 92.0, "10 15 20 30 50 70"),
        (80.2, 89.9, "82 84 86 88"),
        (0.08, 110.0, "0.1 0.2 0.5 1 2 5 10 20 50 100"),
        (12.31, 12.39, "12.32 12.34 12.36 12.38"),
        (300.0, 20_000.0, "500 1,000 2,000 5,000 10,000 20,000"),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_that_are_what_they_say(
    low: float, high: float, said: str
) -> None:
    axis = log_axis(low, high)
    assert axis["ticktext"] == said.split()
    assert [float(text.replace(",", "")) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


def test_any_logarithmic_axis_has_some_ticks_and_room_for_them() -> None:
    for share in range(1, 400):
        low = 10 ** (share / 100 - 2)
        for factor in (1.02, 1.1, 1.33, 2, 4, 9, 60, 900):
            ticks = log_axis(low, low * factor)["tickvals"]
            assert 3 <= len(ticks) <= 12, (low, factor, ticks)
            assert ticks == sorted(set(ticks))
            assert low * 0.9999 <= ticks[0] and ticks[-1] <= low * factor * 1.0001
