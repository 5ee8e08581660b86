import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bnbench.analysis.collect import collect
from bnbench.analysis.panels import panels
from bnbench.analysis.question import Question
from bnbench.analysis.statistics import cells
from bnbench.report import Report, build, figures, main
from bnbench.report.gather import context
from bnbench.report.table import markdown, people
from tests.records_factory import make_record, write, write_quickstart


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_quickstart(tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.fixture
def report(sweep: Path, tmp_path: Path) -> Report:
    return build([sweep], tmp_path / "out")


def test_a_whole_report_without_torch(sweep: Path) -> None:
    program = (
        "import sys; from bnbench.report import main; code = main([sys.argv[1]]);"
        "heavy = {'torch', 'lightning', 'hydra', 'wandb', 'matplotlib.pyplot'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(sweep)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if str(sweep) not in line) <= 80
    assert "1 diverged" in done.stdout
    for name in ("report.html", "figure.png", "cells.csv"):
        assert str(sweep / "report" / name) in done.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom bnbench.report import main\ntry: main(['--help'])\nexcept SystemExit as stop:\n"
        " heavy = {'polars', 'matplotlib', 'scipy', 'rich', 'pydantic'} & set(sys.modules)\n"
        " sys.exit(f'imported {heavy}' if heavy else stop.code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--out" in done.stdout


def test_the_files_are_what_they_say(report: Report) -> None:
    assert report.figure_png.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in report.figure_svg.read_bytes()
    hidden = [path.name for path in report.page_md.parent.iterdir() if path.name.startswith(".")]
    assert hidden == [".files.parquet"]  # what it has read; atomic writes leave nothing
    page = report.page_md.read_text()
    assert f"]({report.figure_png.name})" in page
    assert report.table_md.read_text() in page
    assert "14 completed, 1 diverged" in page
    assert "0123456789abcdef" in page  # the commit
    assert "made up: diverged" in page


def test_a_markdown_row_for_each_cell(report: Report) -> None:
    lines = report.table_md.read_text().splitlines()
    assert len(lines) == 2 + report.cells.height == 7
    assert len({line.count("|") for line in lines}) == 1


def test_one_point_is_no_points(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write(tmp_path, make_record(seed=seed, error=10.0 + seed))
        write(tmp_path, make_record(norm="gn", nbs=None, seed=seed, error=12.0 + seed**2))
    page = build([tmp_path], tmp_path / "report").page_md.read_text()
    assert "finds a true difference of 1 point with a power" in page


def test_known_records_give_known_words(tmp_path: Path) -> None:
    for seed, error in enumerate((10.0, 11.0, 13.5)):
        write(tmp_path, make_record(nbs=2, seed=seed, error=error))
    write(tmp_path, make_record(nbs=64, error=9.25))
    write(tmp_path, make_record(norm="gn", nbs=None, status="oom"))
    headings, rows = people(build([tmp_path], tmp_path / "report").cells)
    assert headings == ["model", "norm", "NBS", "seeds", "val. error %", "images/s", "other"]
    assert rows == [
        ["resnet8", "bn", "2 (ghost)", "3", "11.5 ± 4.5", "2,000", ""],
        ["resnet8", "bn", "64 (device)", "1", "9.2 (n=1)", "2,000", ""],
        ["resnet8", "gn", "–", "0", "–", "–", "1 oom"],
    ]


@pytest.mark.parametrize(
    ("nbs", "span"), [(4, "4 (ghost)"), (16, "16 (device)"), (32, "32 (group)"), (64, "64 (world)")]
)
def test_an_nbs_is_named_with_its_span(tmp_path: Path, nbs: int, span: str) -> None:
    write(tmp_path, make_record(nbs=nbs, global_batch=64, world_size=4))
    assert f"| {span} |" in markdown(build([tmp_path], tmp_path / "report").cells)


def test_csv_round_trip(report: Report) -> None:
    schema = report.cells.schema
    assert_frame_equal(pl.read_csv(report.table_csv, schema=schema), report.cells, check_exact=True)
    runs = report.collected.runs
    assert_frame_equal(pl.read_csv(report.runs_csv, schema=runs.schema), runs, check_exact=True)


def test_the_same_records_give_the_same_bytes(report: Report, tmp_path: Path) -> None:
    again = figures.error_against_nbs(report.answer.panels)
    assert again == (report.figure_png.read_bytes(), report.figure_svg.read_bytes())


def test_an_axis_of_errors_ends_at_0_and_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where panels share their scale, and the first alone has an interval below 0."""
    limits: list[tuple[float, float]] = []
    monkeypatch.setattr(
        figures, "_settle", lambda figure: limits.extend(axes.get_ylim() for axes in figure.axes)
    )
    for seed in (0, 1, 2):
        write(tmp_path, make_record(global_batch=32, nbs=2, seed=seed, error=10.0 * seed))
        write(tmp_path, make_record(global_batch=64, nbs=2, seed=seed, error=70.0 + 15 * seed))
    runs = collect([tmp_path]).runs
    figures.error_against_nbs(panels(runs, cells(runs)))
    assert limits == [(0, 100), (0, 100)]


def test_panels_lines_and_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """World sizes get panels, a norm's settings lines; gn is one level without points."""
    drawn: list[tuple[str, str, int]] = []

    def level(axes, cell, colour, dashes, label):
        drawn.append(("level", label, 1))

    def line(axes, cells, colour, marker, label, shift):
        drawn.append(("line", label, len(cells)))

    monkeypatch.setattr(figures, "_draw_level", level)
    monkeypatch.setattr(figures, "_draw_line", line)
    for world in (1, 2):
        for nbs in (2, 64):
            for policy in ("mean", "rank0"):
                settings: Any = {"nbs": nbs, "world_size": world, "norm_settings": {"statistics": policy}}
                diverged = policy == "rank0" and nbs == 2
                write(tmp_path, make_record(**settings, status="diverged" if diverged else "completed"))
        write(tmp_path, make_record(norm="gn", nbs=None, world_size=world))
    build([tmp_path], tmp_path / "report")
    panel = [("line", "bn statistics mean", 2), ("line", "bn statistics rank0 (1 diverged)", 2)]
    assert drawn == [*panel, ("level", "gn (no NBS)", 1)] * 2


@pytest.mark.parametrize(
    "records",
    [
        [make_record(norm="gn", nbs=None)],
        [make_record(status="failed")],
        [make_record(norm="gn", nbs=None, status="failed"), make_record(nbs=2, status="diverged")],
        [make_record(model=f"resnet{depth}") for depth in (8, 14, 20, 32)],
    ],
    ids=["only gn", "nothing completed", "nothing at all", "four panels"],
)
@pytest.mark.filterwarnings("error")
def test_sparse_sweeps_are_drawn_too(tmp_path: Path, records: list) -> None:
    for record in records:
        write(tmp_path, record)
    assert build([tmp_path], tmp_path / "report").figure_png.stat().st_size > 1000


def test_a_users_mistake_is_one_line_and_2(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    mistakes = [[str(sweep), "--out", str(file)], [str(sweep), "--out", str(file / "below")]]
    mistakes += [[str(tmp_path / "none")], [str(file)], [], [str(sweep), "--outt", "x"]]
    for argv in mistakes:
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("bnbench report: ")
        assert err.count("\n") == 1
    assert file.read_text() == "mine"


def test_problems_are_printed_and_on_the_page(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sweep / "bad" / "record.json"
    bad.parent.mkdir()
    bad.write_text('{"schema": 99}')
    assert main([str(sweep)]) == 0
    assert f"{bad}: schema 99" in capsys.readouterr().out
    assert f"{bad}: schema 99" in (sweep / "report" / "report.md").read_text()


def test_health_is_listed_in_the_order_of_the_cells(tmp_path: Path) -> None:
    """Not in that of the folders, where 16 comes before 2."""
    for nbs in (16, 2, 64, 4):
        write(tmp_path, make_record(nbs=nbs, metrics={"val_error_running": 10.0, "val_error_precise": 9.0}))
    collected = collect([tmp_path])
    table = cells(collected.runs)
    said = context([tmp_path], tmp_path, Question(), collected, table, [], [])
    assert [row.cell for row in said.health] == list(table["cell"])
    assert list(table["nbs"]) == [2, 4, 16, 64]


def test_range_tests_are_listed_as_what_they_are_and_nowhere_as_lacking_seeds(tmp_path: Path) -> None:
    test: dict[str, Any] = {"identity_of": {"recipe.schedule": {"name": "range", "lr_end": 10.0}}}
    for norm, nbs in (("bn", 2), ("gn", None)):
        for seed in range(3):
            status: Any = "diverged" if norm == "gn" and seed else "completed"
            found = {"largest_stable_lr": 0.5}
            write(
                tmp_path / "range",
                make_record(
                    norm=norm, nbs=nbs, seed=seed, error=None, status=status, metrics=found, lr=0.01, **test
                ),
            )
            write(tmp_path / "plain", make_record(norm=norm, nbs=nbs, seed=seed, error=10.0 + seed))
    told = "6 learning-rate range tests: what came of it is under 'Largest stable learning rates'"
    for roots in (["range"], ["range", "plain"]):
        found = build([tmp_path / root for root in roots], tmp_path / "out")
        html = found.page_html.read_text().replace("&#39;", "'")
        assert found.page_md.read_text().count(told) == 1
        assert html.count(told) == 1
        said = [sentence for panel in found.answer.judged for sentence in panel.sentences]
        assert not [each for each in said if "too little" in each or "diverged" in each]
        assert "no run has an error to show" not in html
        assert len(found.answer.panels) == len(roots)
    assert [each.outcome for panel in found.answer.judged for each in panel.contrasts] == [
        "not distinguishable"
    ]
