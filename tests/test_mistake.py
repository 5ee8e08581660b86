"""One line for a user's mistake; a bug keeps its traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnbench import cli, report
from bnbench.config.fields import positive
from bnbench.mistake import is_told


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """`collect` of the report asks for the largest of nothing."""
    module = {"__name__": "bnbench.analysis.collect"}
    exec(compile("def collect(*_):\n    return max([])\n", "collect.py", "exec"), module)
    monkeypatch.setattr("bnbench.analysis.collect.collect", module["collect"])


def test_what_was_raised_to_be_told_is_told() -> None:
    with pytest.raises(ValueError, match="at least 1") as caught:
        positive("data.max_train", 0)
    assert is_told(caught.value)


@pytest.mark.usefixtures("bug")
def test_what_python_raises_in_a_line_of_ours_is_a_bug(tmp_path: Path) -> None:
    for call in (lambda: report.main([str(tmp_path)]), lambda: cli.main(["report", str(tmp_path)])):
        with pytest.raises(ValueError, match="empty") as caught:
            call()
        assert not is_told(caught.value)
