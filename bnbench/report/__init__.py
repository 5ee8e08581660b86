"""`bnbench report`: records in; a page, tables and figures out. No torch; heavy imports when needed."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bnbench.analysis.files import Files
from bnbench.analysis.question import DEFAULT, FAMILIES, Question
from bnbench.mistake import is_told
from bnbench.records import write_atomic

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.answer import Answer
    from bnbench.analysis.claims import ClaimResult
    from bnbench.analysis.collect import Collected


CACHE = ".files.parquet"


@dataclass(frozen=True)
class Report:
    """The files of a report, and what they were made from."""

    figure_png: Path
    figure_svg: Path
    table_md: Path
    table_csv: Path
    runs_csv: Path
    page_md: Path
    page_html: Path
    collected: Collected
    cells: pl.DataFrame
    answer: Answer
    claims: list[ClaimResult]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: what is read stays to the end, and walking it takes a fifth of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_uncollected()
def build(roots: Sequence[Path], out: Path, question: Question = DEFAULT) -> Report:
    """Write the report on every record under `roots` into the folder `out`, made if it is not there.

    Where runs are evidence for claims, their verdicts are on the page and in claims.csv.

    Raises ValueError with one line where a root does not exist, no record is usable, the question names what is not
    there, or `out` cannot be written.
    """
    from bnbench.analysis.build import answer, outline
    from bnbench.analysis.claims import judge
    from bnbench.analysis.collect import collect
    from bnbench.analysis.statistics import cells
    from bnbench.report import claims, gather, html, latex, page, table, verdict
    from bnbench.report.drawing import drawn_beside

    with drawn_beside() as figure:
        cache = Files(out / CACHE)
        collected = collect(roots, cache)
        summary = cells(collected.runs)
        shown = outline(collected, summary, question)
        drawable = [panel for panel in shown if panel.cells]
        figure.begin([panel for panel in drawable if not panel.ranged] or drawable)
        found = answer(collected, summary, shown, question, cache)
        report = Report(
            figure_png=out / "figure.png",
            figure_svg=out / "figure.svg",
            table_md=out / "table.md",
            table_csv=out / "cells.csv",
            runs_csv=out / "runs.csv",
            page_md=out / "report.md",
            page_html=out / "report.html",
            collected=collected,
            cells=summary,
            answer=found,
            claims=judge(collected.evidence),
        )
        runs_parquet = io.BytesIO()
        collected.runs.write_parquet(runs_parquet)
        files = {
            report.table_md: table.markdown(summary).encode(),
            report.table_csv: summary.write_csv().encode(),
            report.runs_csv: collected.runs.write_csv().encode(),
            out / "runs.parquet": runs_parquet.getvalue(),
            out / "comparisons.csv": verdict.to_csv(found).encode(),
            out / "table.tex": latex.table(found).encode(),
        }
        if report.claims:
            files[out / "claims.csv"] = claims.to_csv(report.claims).encode()
        drawn = report.figure_png, report.figure_svg
        beside = [*(path.name for path in (*drawn, *files)), report.page_md.name]
        said = gather.context(roots, out, question, collected, summary, report.claims, beside)
        files[report.page_md] = page.page(collected, summary, found, said, report.figure_png.name).encode()
        files[report.page_html] = html.render(found, said).encode()
        files |= zip(drawn, figure.result(), strict=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            write_atomic(path, data)
        cache.save()
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{out}: cannot be written ({why}): choose another folder with --out") from None
    return report


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bnbench report",
        description="Turn the records of finished runs into one page: verdicts in words, validation error against the "
        "normalization batch size (NBS) with intervals, costs, curves, health, provenance. Two folders are put side "
        "by side where they hold the same runs.",
        epilog="Writes report.html (the page, one file that opens offline), report.md, figure.png, figure.svg, "
        "table.md, table.tex, cells.csv (one row per cell), comparisons.csv, runs.csv and runs.parquet; "
        "for runs of experiment=claims/..., their "
        "verdicts, and claims.csv. "
        "Runs that diverged or failed are counted, never averaged. "
        "Example: bnbench report runs/quickstart",
    )
    parser.add_argument(
        "dirs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a folder with run folders below it, e.g. runs/quickstart",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the report goes (default: report/ in the first DIR)"
    )
    parser.add_argument(
        "--baseline",
        metavar="NORM",
        default=DEFAULT.baseline,
        help="the norm, or the line of one, that the others are held against (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="ERROR",
        help="the validation error in percent that times are to (default: the median of a panel's cells)",
    )
    parser.add_argument(
        "--resolve",
        type=float,
        metavar="POINTS",
        default=DEFAULT.resolve,
        help="the difference in points of error that the number of seeds needed is for (default: %(default)s)",
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default=DEFAULT.family,
        help="what Holm's correction goes over: the comparisons of one line in a panel, of a panel, or of the page "
        "(default: %(default)s)",
    )
    from bnbench.report.wandb_report import add_options

    add_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """The verb. 0, or 2 after one line on stderr for a user's mistake."""
    try:
        arguments = _parser().parse_args(argv)
        question = Question(arguments.baseline, arguments.target, arguments.resolve, arguments.family)
        if not arguments.wandb and (arguments.project or arguments.entity):
            raise ValueError("--project and --entity say where the W&B report goes: add --wandb")
        report = build(arguments.dirs, arguments.out or arguments.dirs[0] / "report", question)
    except ValueError as error:
        if not is_told(error):
            raise
        print(f"bnbench report: {error}", file=sys.stderr)
        return 2

    from bnbench.report import claims, table, verdict

    table.show(report.cells)
    for line in verdict.lines(report.answer):
        print(line)
    for line in claims.lines(report.claims):
        print(line)
    problems = report.collected.problems
    if problems:
        print(f"{len(problems)} note(s) on the records:")
        for problem in problems:
            print(f"  {problem}")
    for what, path in (("page", report.page_html), ("figure", report.figure_png), ("csv", report.table_csv)):
        print(f"{what:<7}{path}")
    return _published(report, arguments) if arguments.wandb else 0


def _published(report: Report, arguments: argparse.Namespace) -> int:
    """The report on W&B as well: its URL, or 2 after one line."""
    from bnbench.report.wandb_report import publish

    try:
        posted = publish(
            report.answer, report.collected.records, project=arguments.project, entity=arguments.entity
        )
    except ValueError as error:
        if not is_told(error):
            raise
        print(f"bnbench report: {error}", file=sys.stderr)
        return 2
    print(f"W&B    {posted.url}")
    return 0
