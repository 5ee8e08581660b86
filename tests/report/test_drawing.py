"""The figure that a process beside draws is the one that this process would, whatever becomes of that process."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from bnbench.analysis.answer import Panel
from bnbench.report import drawing, figures
from tests.report.answers import whole


@pytest.fixture(scope="module")
def panels() -> list[Panel]:
    return list(whole()[0].panels)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes beside, started as from a process that has not imported matplotlib."""
    found: list[subprocess.Popen[bytes]] = []
    start = drawing._start

    def start_anyway() -> subprocess.Popen[bytes] | None:
        with monkeypatch.context() as for_now:
            for_now.delitem(sys.modules, "matplotlib", raising=False)
            beside = start()
        found.extend([beside] if beside else [])
        return beside

    monkeypatch.setattr(drawing, "_start", start_anyway)
    return found


def test_it_is_the_same(panels: list[Panel], started: list[subprocess.Popen[bytes]]) -> None:
    with drawing.drawn_beside() as figure:
        figure.begin(panels)
        assert figure.result() == figures.error_against_nbs(panels)
    assert started[0].returncode == 0


@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_without_the_process_it_is_drawn_here(
    panels: list[Panel], started: list[subprocess.Popen[bytes]], python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with drawing.drawn_beside() as figure:
        figure.begin(panels)
        assert figure.result() == figures.error_against_nbs(panels)


@pytest.mark.parametrize("begun", [False, True])
def test_a_report_that_is_refused_leaves_no_process(
    panels: list[Panel], started: list[subprocess.Popen[bytes]], begun: bool
) -> None:
    with contextlib.suppress(ZeroDivisionError), drawing.drawn_beside() as figure:
        if begun:
            figure.begin(panels)
        raise ZeroDivisionError
    assert started[0].returncode == -9


def test_where_matplotlib_is_imported_no_process_starts(panels: list[Panel]) -> None:
    figures.prepare()
    assert drawing._start() is None
