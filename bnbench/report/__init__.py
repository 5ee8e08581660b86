"""`bnbench report`: records in; a table, a figure and a page out. No torch; heavy imports when needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bnbench.records import write_atomic

if TYPE_CHECKING:
    import polars as pl

    from bnbench.analysis.claims import ClaimResult
    from bnbench.analysis.collect import Collected


@dataclass(frozen=True)
class Report:
    """The files of a report, and what they were made from."""

    figure_png: Path
    figure_svg: Path
    table_md: Path
    table_csv: Path
    runs_csv: Path
    page_md: Path
    collected: Collected
    cells: pl.DataFrame
    claims: list[ClaimResult]


def build(roots: Sequence[Path], out: Path) -> Report:
    """Write the report on every record under `roots` into the folder `out`, made if it is not there.

    Where runs are evidence for claims, their verdicts are on the page and in claims.csv.

    Raises ValueError with one line where a root does not exist, no record is usable, or `out` cannot be
    written.
    """
    from bnbench.analysis.claims import judge
    from bnbench.analysis.collect import collect
    from bnbench.analysis.statistics import cells
    from bnbench.report import claims, figures, page, table

    collected = collect(roots)
    summary = cells(collected.runs)
    report = Report(
        figure_png=out / "figure.png",
        figure_svg=out / "figure.svg",
        table_md=out / "table.md",
        table_csv=out / "cells.csv",
        runs_csv=out / "runs.csv",
        page_md=out / "report.md",
        collected=collected,
        cells=summary,
        claims=judge(collected.evidence),
    )
    png, svg = figures.error_against_nbs(collected.runs, summary)
    files = {
        report.figure_png: png,
        report.figure_svg: svg,
        report.table_md: table.markdown(summary).encode(),
        report.table_csv: summary.write_csv().encode(),
        report.runs_csv: collected.runs.write_csv().encode(),
        report.page_md: page.page(
            roots, out, collected, summary, report.figure_png.name, report.claims
        ).encode(),
    }
    if report.claims:
        files[out / "claims.csv"] = claims.to_csv(report.claims).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            write_atomic(path, data)
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
        description="Turn the records of finished runs into a table and a figure: validation error against "
        "the normalization batch size (NBS), one line per norm, mean and 95% t interval over seeds.",
        epilog="Writes report.md (the page), figure.png, figure.svg, table.md, cells.csv (one row per cell) "
        "and runs.csv (one row per run); for runs of experiment=claims/..., their verdicts, and claims.csv. "
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
    return parser


def main(argv: list[str]) -> int:
    """The verb. 0, or 2 after one line on stderr for a user's mistake."""
    try:
        arguments = _parser().parse_args(argv)
        report = build(arguments.dirs, arguments.out or arguments.dirs[0] / "report")
    except ValueError as error:
        print(f"bnbench report: {error}", file=sys.stderr)
        return 2

    from bnbench.report import claims, table

    table.show(report.cells)
    for line in claims.lines(report.claims):
        print(line)
    problems = report.collected.problems
    if problems:
        print(f"{len(problems)} note(s) on the records:")
        for problem in problems:
            print(f"  {problem}")
    for what, path in (("figure", report.figure_png), ("page", report.page_md), ("csv", report.table_csv)):
        print(f"{what:<7}{path}")
    return 0
