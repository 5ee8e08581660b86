"""`bnbench bench report` and `startup`: whole processes, what they took, and what is made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnbench import cli
from bnbench.benchmarks import report, startup
from bnbench.benchmarks.many_records import write_many
from bnbench.benchmarks.processes import Finished, bnbench, run, run_with_peak
from bnbench.records import EPOCHS, find_records, read_record


def test_a_process_is_timed_by_itself():
    sleeps = run([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert sleeps.seconds > 0.5 > sleeps.cpu_seconds > 0
    works = run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"])
    assert works.cpu_seconds >= 0.5


def test_a_process_that_fails_is_told_with_what_it_said():
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3: .*no luck"):
        run([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(RuntimeError, match=r"ended with 2: .*/nowhere"):
        run_with_peak("report", "/nowhere")


def test_the_peak_is_the_childs_own():
    """This pytest holds torch, and more: what it has is none of the child's."""
    ballast = bytearray(300_000_000)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    _, peak = run_with_peak("--help")
    assert 5e6 < peak < 100e6
    del ballast


def test_made_up_records_are_records(tmp_path: Path):
    write_many(tmp_path, 150)
    records = [read_record(path) for path in find_records(tmp_path)]
    assert len(records) == 150 == len({record.id for record in records})
    assert {record.status for record in records} == {"completed", "diverged"}
    cells = {json.dumps({**r.identity, "seed": 0}, sort_keys=True) for r in records}
    assert len(cells) == 80, "5 models with 4 norms without NBS and 2 at 6 of them"
    for record in records:
        assert (record.metrics["final_val_error"] is None) == (record.status == "diverged")
    assert len(list(tmp_path.glob(f"*/{EPOCHS}"))) == 150
    write_many(tmp_path / "again", 3)
    for path in find_records(tmp_path / "again"):
        assert (tmp_path / path.parent.name / path.name).read_bytes() == path.read_bytes()


def test_report_runs_as_a_process():
    result = report.measure((20,), 1)
    (row,) = result["by_size"].values()
    assert row["seconds"][0] > 0 and row["cpu_seconds"][0] > 0 and row["peak_bytes"][0] > 30e6
    assert "20 records: peak memory" in report.table(result)
    json.dumps(result, allow_nan=False)


def test_every_report_is_of_all_records_into_a_folder_that_is_new(monkeypatch):
    outs, sizes = [], []

    def pretend(verb, root, out_word, out):
        assert (verb, out_word) == ("report", "--out") and not Path(out).exists()
        Path(out).mkdir()
        outs.append(out)
        sizes.append(len(list(find_records(Path(root)))))
        return Finished(2.0 * sizes[-1], 1.0 * sizes[-1], ""), 10**6 * sizes[-1]

    monkeypatch.setattr(report, "run_with_peak", pretend)
    result = report.measure((1, 3, 7), 2)
    assert sizes == [1, *[1, 3, 7] * 2], "one untimed"
    assert len(set(outs)) == 7
    rows = {row["name"]: row["value"] for row in result["figures"]}
    assert rows["7 records: time"] == 14 and rows["7 records: processor time"] == 7
    assert rows["3 records: peak memory"] == 3
    assert rows["growth: a further record, 3 to 7 / 1 to 3"] == 1


def a_row(seconds: float, peak: float = 5e8) -> dict[str, list[float]]:
    return {"seconds": [seconds] * 6, "cpu_seconds": [seconds] * 6, "peak_bytes": [peak] * 6}


def test_growth_leaves_the_start_out_and_sees_a_square():
    sizes = (100, 1000, 10_000)
    linear = report.figures({n: a_row(2 + 0.0005 * n) for n in sizes})
    square = report.figures({n: a_row(2 + 0.0005 * n + 1e-7 * n * n) for n in sizes})
    assert linear[-1].value == pytest.approx(1) and linear[-1].met == "yes"
    assert square[-1].value > 1.5 and square[-1].met == "no"
    by_name = {figure.name: figure for figure in linear}
    assert by_name["1,000 records: that of 1,000 of them"].value == pytest.approx(2.5)
    assert by_name["10,000 records: that of 1,000 of them"].value == pytest.approx(0.7)


def test_targets_hold_at_ten_thousand():
    figures = report.figures({100: a_row(99, 9e9), 10_000: a_row(10.5, 0.9e9)})
    assert [(figure.target, figure.met) for figure in figures if figure.target] == [(10, "no"), (1000, "yes")]


def test_imported_modules_are_seen():
    assert "json.decoder" in startup.imported([sys.executable, "-c", "import json"])
    assert "torch" not in startup.imported(bnbench("--help"))


def test_startup_puts_the_verbs_beside_python(monkeypatch):
    """With processes that take as long as they say: what is compared with what."""
    started = []

    def pretend(command):
        started.append(" ".join(command[1:]))
        if "importtime" in started[-1]:
            has = "torch" if "import torch" in started[-1] or "plan" in started[-1] else "sys"
            return Finished(1.0, 1.0, f"import time:       1 |          1 | {has}\n")
        seconds = 2.0 if "torch" in started[-1] else 0.02 if "pass" in started[-1] else 0.4
        return Finished(seconds, seconds / 2, "")

    monkeypatch.setattr(startup, "run", pretend)
    result = startup.measure(6)
    rows = {row["name"]: row for row in result["figures"]}
    assert rows["bnbench train --help"]["value"] == 0.4 and rows["bnbench train --help"]["met"] == "yes"
    assert rows["bnbench report --help"]["target"] == 1.0
    assert rows["bnbench report --help, processor time"]["value"] == 0.2
    assert rows["bnbench report --help / python -c pass"]["value"] == pytest.approx(20)
    assert rows['bnbench report --help / python -c "import torch"']["value"] == pytest.approx(0.2)
    count = rows["verbs' --help that import torch"]
    assert (count["value"], count["met"], result["import_torch"]) == (1, "no", ["bnbench plan --help"])
    assert "torch is imported by bnbench plan --help" in startup.table(result)
    timed = [word for word in started if "importtime" not in word]
    assert len(timed) == 7 * 6, "once untimed, and six rounds"
    firsts = timed[6::6]
    assert len(set(firsts)) == 6, "each is first once"


def test_a_probe_that_sees_nothing_is_no_answer(monkeypatch):
    monkeypatch.setattr(startup, "run", lambda command: Finished(1.0, 1.0, ""))
    with pytest.raises(RuntimeError, match="tells nothing"):
        startup.measure(1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "--records=100,10"], "--records=100,10 must be numbers of at least 1, each larger"),
        (["report", "--records=0"], "--records=0 must be"),
        (["report", "--records=x"], "'x' is not COUNT,..."),
        (["report", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["startup", "--rounds=0"], "--rounds=0 must be at least 1"),
    ],
)
def test_a_bad_option_is_one_line(words, said, capsys):
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnbench bench: ") and said in error and error.count("\n") == 1
