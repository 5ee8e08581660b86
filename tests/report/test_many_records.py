"""Thousands of records: read and reported in time and memory that grow no faster than their number."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnbench.benchmarks.many_records import write_many
from bnbench.records import find_records

REPORT = """
import json, re, resource, sys
from pathlib import Path
from bnbench.report import build
report = build([Path(sys.argv[1])], Path(sys.argv[2]))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
assert "torch" not in sys.modules
# Its own is not ru_maxrss, which begins at what the process held that started this one: here, a pytest with torch.
most = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
seconds = sum(each.ru_utime + each.ru_stime for each in used)
print(json.dumps([report.collected.runs.height, seconds, (most + used[1].ru_maxrss) * 1024]))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux")


def reported(root: Path, out: Path) -> tuple[int, float, int]:
    """Runs, seconds of processor time (which other processes of the machine leave alone), bytes."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, root, out], capture_output=True, text=True, check=True
    )
    return tuple(json.loads(done.stdout))  # type: ignore[return-value]


def test_it_grows_no_faster_than_linearly(tmp_path: Path) -> None:
    used = []
    for runs in (400, 1600):
        write_many(tmp_path / str(runs), runs)
        used.append(reported(tmp_path / str(runs), tmp_path / f"report{runs}"))
    (few, seconds, _), (many, longer, _) = used
    assert (few, many) == (400, 1600)
    assert longer < 1.1 * 4 * seconds


def read(root: Path) -> float:
    """Seconds of processor time that reading and parsing the records by themselves takes on this machine, now."""
    begun = time.process_time()
    for path in find_records(root):
        json.loads(path.read_text())
    return time.process_time() - begun


@pytest.mark.slow
def test_ten_thousand_are_reported_in_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    write_many(tmp_path / "runs", 10_000)
    before = read(tmp_path / "runs")
    runs, seconds, memory = reported(tmp_path / "runs", tmp_path / "report")
    assert runs == 10_000
    # The target is 10 s, which `bnbench bench report` judges. The same code takes 4 s on one day and 12 on another of
    # this machine, so that here it is held against reading, in the same run: 9 to 14 times that.
    assert seconds < 20 * max(before, read(tmp_path / "runs"))
    assert memory < 1e9
    _, again, _ = reported(tmp_path / "runs", tmp_path / "report")
    assert again < seconds  # from the cache
