"""Verdicts where a reader meets them: page, CSV and terminal."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from bnbench.report import build, main
from tests.analysis.test_claims import EVIDENCE
from tests.records_factory import make_record, write


def folder_of(root: Path, claim: str, lean: float, seeds: int = 5) -> Path:
    for record in EVIDENCE[claim](lean, seeds):
        write(root / claim, record)
    return root / claim


@pytest.mark.parametrize(
    ("lean", "word"), [(20, "supported"), (-20, "not supported"), (0, "not distinguishable")]
)
def test_a_claim_has_a_verdict_an_effect_and_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lean: float, word: str
) -> None:
    folder = folder_of(tmp_path, "depth", lean)
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"claim depth: {word.upper()}: BN trains networks" in out
    assert re.search(
        r"validation error %\s+[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\], " + word[:4], " ".join(out.split())
    )
    told = out[out.index("claim depth") :].splitlines()
    assert max(len(line) for line in told if str(folder) not in line) <= 80
    page = (folder / "report" / "report.md").read_text()
    assert f"### depth: {word}\n" in page
    lines = [line for line in page.splitlines() if line.startswith("| BN against none")]
    assert len(lines) == 4
    assert [line.split("|")[-2].strip() for line in lines] == [word, word, "context", "context"]
    with (folder / "report" / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == [word, word, "context", "context"]
    assert all(float(row["low"]) <= float(row["effect"]) <= float(row["high"]) for row in rows)


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, "accuracy", 20, seeds=1)
    assert main([str(folder)]) == 0
    assert "NOT ENOUGH RUNS" in capsys.readouterr().out
    assert (
        "1 pair of runs that share a seed, and 2 are the fewest"
        in (folder / "report" / "report.md").read_text()
    )


def test_several_claims_in_the_catalogs_order(tmp_path: Path) -> None:
    for claim in ("placement", "convergence"):
        folder_of(tmp_path, claim, 20)
    report = build([tmp_path], tmp_path / "report")
    assert [result.claim for result in report.claims] == ["convergence", "placement"]
    assert "the same run as" not in report.page_md.read_text()


def test_no_claim_no_section_and_no_file(tmp_path: Path) -> None:
    write(tmp_path, make_record())
    report = build([tmp_path], tmp_path / "report")
    assert report.claims == []
    assert "Claims" not in report.page_md.read_text()
    assert not (tmp_path / "report" / "claims.csv").exists()
