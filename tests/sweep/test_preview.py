"""`bnbench plan` says what would happen, and does nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bnbench import cli
from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.help import train_help
from bnbench.records import write_record
from bnbench.sweep.estimate import Device, Estimate, Estimates
from bnbench.sweep.plan import plan_sweep
from bnbench.sweep.preview_table import duration, ranges, size
from tests.records_factory import record_of

SWEEP = ("norm=bn,gn", "norm.batch_size=2,4", "seed=0,1", "name=s")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


def trained(*words: str, **took: Any) -> list[RunConfig]:
    """The runs of a sweep, with the records that they could have left."""
    runs = plan_sweep(compose_jobs(words, multirun=True)).runs
    for run in runs:
        write_record(run.folder, record_of(run, **took))
    return runs


def plan(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.main(["plan", *words]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def plan_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    return json.loads(plan(capsys, "--json", *words, code=code))


def test_it_opens_as_train_does_and_ends_with_the_command(capsys):
    shown = plan(capsys, "-m", *SWEEP)
    assert shown.startswith("3 cell(s), 6 run(s), on 2 rank(s), into runs/s\nfairness: ")
    assert "8 combinations are 6 distinct runs: norm=gn does not read norm.batch_size" in shown
    assert "none of the 0 record(s) below runs tells how long" in shown
    assert "W&B: offline, project bnbench" in shown
    assert shlex.split(shown.splitlines()[-1]) == ["bnbench", "train", "-m", *SWEEP]


def test_it_writes_nothing_and_reads_what_is_there(capsys, workplace):
    trained("seed=0", "name=s")
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    plan(capsys, "-m", *SWEEP)
    plan(capsys, "--json", "-m", *SWEEP)
    plan(capsys, "-m", "norm.batch_size=2,3", "name=new", code=2)
    assert {path: path.stat().st_mtime_ns for path in workplace.rglob("*")} == before


def test_the_json_counts_what_is_printed(capsys):
    trained("norm=bn", "norm.batch_size=2", "seed=0", "name=s", fit=10.0, setup=2.0)
    found, shown = plan_json(capsys, "-m", *SWEEP), plan(capsys, "-m", *SWEEP)
    totals = found["totals"]
    assert f"{totals['cells']} cell(s), {totals['runs']} run(s)" in shown
    assert f"to do: {totals['todo']} of {totals['runs']} run(s)" in shown
    assert duration(totals["seconds"]) in shown
    runs = [run for cell in found["cells"] for run in cell["runs"]]
    assert len(found["cells"]) == totals["cells"] == 3
    assert len(runs) == totals["runs"] == 6
    assert sum(run["status"] == "finished" for run in runs) == totals["finished"] == 1
    assert sum(run["seconds"] or 0.0 for run in runs) == totals["seconds"] == 5 * 12.0
    for cell in found["cells"]:
        assert cell["name"] in shown and cell["source"] in shown
        assert cell["seeds"] == [0, 1]
    for remark in found["remarks"]:
        assert remark in shown
    assert found["command"] == shown.splitlines()[-1]


def test_the_runs_are_those_that_train_would_make(capsys):
    found = plan_json(capsys, "-m", *SWEEP)
    runs = plan_sweep(compose_jobs(SWEEP, multirun=True)).runs
    assert {run["folder"] for cell in found["cells"] for run in cell["runs"]} == {
        str(run.folder) for run in runs
    }
    assert (found["folders"], found["ranks"]) == (["runs/s"], [2])


def test_what_is_finished_is_not_estimated(capsys):
    trained(*SWEEP)
    found = plan_json(capsys, "-m", *SWEEP)
    assert (
        found["totals"] | {"todo": 0, "finished": 6, "seconds": 0, "without_estimate": 0} == found["totals"]
    )
    assert {cell["seconds"] for cell in found["cells"]} == {None}
    more = plan_json(capsys, "-m", *SWEEP, "seed=0,1,2")
    seconds = [(run["status"], run["seconds"]) for cell in more["cells"] for run in cell["runs"]]
    assert seconds == [("finished", None), ("finished", None), ("todo", 10.0)] * 3


def test_records_of_other_sweeps_beside_it_tell(capsys):
    trained("norm=bn", "norm.batch_size=2", "seed=0,1,2", "name=elsewhere", fit=7.0)
    (Path("runs") / "broken").mkdir()
    (Path("runs") / "broken" / "record.json").write_text("{")
    found = plan_json(capsys, "-m", *SWEEP)
    assert {cell["name"]: cell["source"] for cell in found["cells"]} == {
        "resnet8-bn-nbs2": "3 runs of this cell",
        "resnet8-bn-nbs4": "like bn@2",
        "resnet8-gn": "like bn@2",
    }
    assert found["records"] == {"read": 3, "unreadable": 1, "folders": ["runs"]}


def test_the_working_folder_is_not_searched(capsys):
    trained("seed=0", "dir=out")
    assert plan_json(capsys, "-m", "seed=1,2", "dir=out")["records"]["folders"] == ["out"]
    assert plan_json(capsys, "-m", "seed=1,2", "dir=other")["records"]["read"] == 0


def test_what_has_no_estimate_is_counted_and_not_guessed(capsys):
    trained("seed=0", "name=s")
    words = ("-m", "global_batch=64,128", "seed=1,2", "name=s")
    totals = plan_json(capsys, *words)["totals"]
    assert (totals["seconds"], totals["without_estimate"]) == (20.0, 2)
    assert "one after another at least 20 s, without 2 run(s) that have no estimate" in plan(capsys, *words)
    unknown = plan_json(capsys, "-m", "global_batch=128", "seed=1,2", "name=s")["totals"]
    assert (unknown["seconds"], unknown["without_estimate"]) == (None, 2)


def test_gpu_hours_are_time_by_ranks_where_the_records_are_of_gpus(capsys):
    words = ("trainer.devices=4", "trainer.num_nodes=2", "name=s")
    trained("seed=0", *words, fit=1800.0, device=("cuda", "a made-up GPU"))
    found = plan_json(capsys, "-m", "seed=1,2", *words)
    assert found["totals"]["gpu_hours"] == 8 * 2 * 0.5
    assert found["device"] == {"type": "cuda", "name": "a made-up GPU"}
    shown = plan(capsys, "-m", "seed=1,2", *words)
    assert "1 h 0 min, 8 GPU-hours" in shown and "on a made-up GPU (cuda)" in shown
    assert "not to be started from here: trainer.num_nodes=2" in shown
    trained("seed=0", "name=cpu")
    assert plan_json(capsys, "-m", "seed=1", "name=cpu")["totals"]["gpu_hours"] is None


def test_gpu_hours_are_told_of_each_cell_and_the_total_is_a_least(capsys):
    gpu = {"device": ("cuda", "a made-up GPU")}
    trained("seed=0", "name=s", fit=3600.0, **gpu)
    words = ("-m", "global_batch=64,128", "seed=1,2", "name=s")
    found = plan_json(capsys, *words)
    assert [cell["gpu_hours"] for cell in found["cells"]] == [
        4.0,
        None,
    ]  # two runs, an hour on two ranks each
    assert (found["totals"]["gpu_hours"], found["totals"]["without_estimate"]) == (4.0, 2)
    shown = plan(capsys, *words)
    assert (
        "GPU-hours" in shown
        and "one after another at least 2 h 0 min, 4 GPU-hours, without 2 run(s)" in shown
    )
    trained("seed=0", "name=cpu", "dir=other/x")
    assert "GPU-hours" not in plan(capsys, "-m", "seed=0,1", "name=cpu", "dir=other/x")


def test_memory_and_disk_come_from_the_records_that_tell_of_time(capsys):
    words = ("name=s", "global_batch=64,128")
    for run in compose_jobs(("seed=0,1", "name=s"), multirun=True):
        made = record_of(run)
        memory = {"peak_bytes": 700_000_000 + run.seed, "kind": "resident"}
        write_record(
            run.folder, dataclasses.replace(made, memory=memory, metrics=made.metrics | {"params": 75_290})
        )
    found = plan_json(capsys, "-m", "seed=1,2", *words)
    known, unknown = found["cells"]
    assert (known["peak_bytes"], known["params"]) == (700_000_001, 75_290)  # the largest
    assert (unknown["peak_bytes"], unknown["params"], unknown["checkpoint_bytes"]) == (None, None, None)
    disk = found["disk"]
    assert known["checkpoint_bytes"] == 2 * 4 * 75_290
    assert disk["checkpoints_bytes"] == 3 * known["checkpoint_bytes"]
    assert disk["needed_bytes"] == disk["kept_bytes"] + disk["checkpoints_bytes"] < disk["free_bytes"]
    assert disk["unknown_runs"] == 2
    shown = plan(capsys, "-m", "seed=1,2", *words)
    assert "700 MB" in shown and f"disk: at least {size(disk['needed_bytes'])}" in shown


def test_jobs_of_slurm_have_their_checkpoints_at_once(capsys):
    (run,) = compose_jobs(("seed=0", "name=s"))
    made = record_of(run)
    write_record(run.folder, dataclasses.replace(made, metrics=made.metrics | {"params": 75_290}))
    words = ("-m", "hydra/launcher=slurm", "norm=bn", "norm.batch_size=2,4,8,16", "name=t")
    for parallel, worlds in ((64, 4), (3, 3)):
        found = plan_json(capsys, *words, f"hydra.launcher.array_parallelism={parallel}")
        assert found["disk"]["checkpoints_bytes"] == worlds * 3 * found["cells"][0]["checkpoint_bytes"]


def test_slurms_nodes_are_not_probed_here(capsys):
    assert cli.main(["plan", "--probe", "-m", "hydra/launcher=slurm", "seed=0"]) == 2
    assert "--probe would time this machine" in capsys.readouterr().err


def test_too_small_a_disk_is_said_to_be(capsys, monkeypatch):
    (run,) = compose_jobs(("seed=0", "name=s"))
    made = record_of(run)
    write_record(run.folder, dataclasses.replace(made, metrics=made.metrics | {"params": 75_290}))
    assert "too little" not in plan(capsys, "seed=1", "name=s")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    shown = plan(capsys, "seed=1", "name=s")
    assert "1 MB are free: too little" in shown
    assert "disk" not in plan(capsys, "seed=0", "name=s")  # nothing is to be done


def test_what_a_probe_tells_is_shown_as_its_own(capsys, monkeypatch):
    def by_probes(cells, records, prober):
        prober.say("a line")
        told = Estimate(60.0, "probe", True, 5 * 10**8, 1000)
        return Estimates(Device("cpu", "here"), [told, None]), {1: "oom: made up"}

    monkeypatch.setattr("bnbench.sweep.probe.estimate_by_probes", by_probes)
    words = ("--probe", "-m", "norm=bn,gn", "name=s")
    assert cli.main(["plan", *words]) == 0
    shown, told = capsys.readouterr()
    assert told == "probe: a line\n"
    assert re.search(r"resnet8-bn-nbs32 .* 1 min 0 s +1 min 0 s +500 MB +probe", shown)
    assert re.search(r"resnet8-gn .* oom: made up", shown)
    assert "times: probes of 1 cell(s), extended to whole runs; on here (cpu)" in shown
    assert "at least 1 min 0 s, without 1 run(s)" in shown
    assert shown.splitlines()[-1] == "bnbench train -m norm=bn,gn name=s"
    assert cli.main(["plan", "--json", *words]) == 0
    bn, gn = json.loads(capsys.readouterr().out)["cells"]
    assert (bn["source"], bn["problem"], gn["source"], gn["problem"]) == ("probe", None, None, "oom: made up")


def test_what_other_code_finished_is_neither_done_nor_to_do(capsys):
    first, *_ = trained("seed=0,1", "name=s")
    made = record_of(first)
    write_record(first.folder, dataclasses.replace(made, provenance=made.provenance | {"code": "another"}))
    words = ("-m", "seed=0,1,2", "name=s")
    found = plan_json(capsys, *words, code=2)
    (cell,) = found["cells"]
    assert [run["status"] for run in cell["runs"]] == ["other code", "finished", "todo"]
    assert (found["totals"]["other_code"], found["totals"]["todo"]) == (1, 1)
    assert (cell["seconds"], [run["seconds"] for run in cell["runs"]]) == (10.0, [None, None, 10.0])
    assert "reuse_records=true" in found["refusal"]
    assert cli.main(["train", *words]) == 2
    assert found["refusal"] in capsys.readouterr().err
    assert plan(capsys, *words, code=2).splitlines()[-1] == f"bnbench train refuses it: {found['refusal']}"
    reused = plan_json(capsys, *words, "reuse_records=true")
    assert (reused["refusal"], reused["totals"]["finished"]) == (None, 2)


def test_with_nothing_to_do_nothing_is_probed(capsys, monkeypatch):
    trained("seed=0", "name=s")
    monkeypatch.setattr("bnbench.sweep.probe.Prober", None)
    assert plan_json(capsys, "--probe", "seed=0", "name=s")["totals"]["todo"] == 0


def test_every_invalid_combination_is_listed_beside_the_valid(capsys):
    words = ("-m", "norm=bn,gn", "norm.batch_size=2,24,63", "seed=0,1", "epochs=3")
    found = plan_json(capsys, *words, code=2)
    assert [job["overrides"] for job in found["invalid"]] == [
        ["norm=bn", f"norm.batch_size={nbs}", f"seed={seed}", "epochs=3"]
        for nbs in (24, 63)
        for seed in (0, 1)
    ]
    assert (found["totals"]["invalid"], found["totals"]["runs"]) == (4, 4)
    shown = plan(capsys, *words, code=2)
    assert "4 of 12 combinations are invalid" in shown
    for job in found["invalid"]:
        assert job["reason"] in shown and " ".join(job["overrides"][:-1]) + "\n" in shown
    assert "train refuses" in shown.splitlines()[-1]
    assert cli.main(["train", *words]) == 2
    assert found["invalid"][0]["reason"] in capsys.readouterr().err


def test_none_valid_for_several_reasons_are_all_listed(capsys):
    found = plan_json(capsys, "-m", "norm.batch_size=24,63", code=2)
    assert (len(found["invalid"]), found["cells"], found["wandb"]) == (2, [], None)
    assert "2 of 2 combinations are invalid" in plan(capsys, "-m", "norm.batch_size=24,63", code=2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["norm.batchsize=2"], "did you mean norm.batch_size?"),
        (["-m", "norm.batchsize=2,4"], "did you mean norm.batch_size?"),
        (["-m", "norm=bnn", "seed=0,1"], "unknown norm 'bnn'"),
        (["-m", "seed=0,1", "epochs=0"], "epochs=0"),
        (["-m", "name=[1"], "key=value"),
        (["seed=0,1"], "add -m"),
        (["norm=gn", "norm.batch_size=4"], "would be ignored"),
        (["-m", "seed=0,1", "dir=file"], "in the way"),
        (["--jsn"], "--jsn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_of_the_whole_command_is_one_line(capsys, words, named):
    Path("file").write_text("")
    for option in ([], ["--json"]):
        assert cli.main(["plan", *option, *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("bnbench plan: ") and named in line


def test_the_examples_of_trains_help_work(capsys):
    examples = re.findall(
        r"^    (?:bnbench|torchrun .* -m bnbench\.)(?: )?train (.*?)(?: {3}.*)?$", train_help(), re.M
    )
    assert len(examples) == 4
    for words in examples:
        assert plan(capsys, *shlex.split(words))


@pytest.mark.parametrize(
    ("words", "environment", "mode"),
    [
        ([], None, "offline"),
        ([], "online", "online"),
        (["logger.mode=offline"], "online", "offline"),
        (["logger=none"], "online", "none"),
    ],
)
def test_the_mode_of_wandb_is_the_one_that_train_would_take(capsys, monkeypatch, words, environment, mode):
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    found = plan_json(capsys, *words)["wandb"]
    assert (found["mode"], found["WANDB_MODE"]) == (mode, environment)


def test_a_sweeper_that_chooses_as_it_goes_is_said_to(capsys):
    found = plan_json(capsys, "-m", "seed=0,1", "hydra.sweeper._target_=theirs.Sweeper")
    assert found["totals"]["runs"] == 1
    assert any("theirs.Sweeper chooses its runs as it goes" in remark for remark in found["remarks"])


def test_cells_of_one_norm_are_told_apart(capsys):
    found = plan_json(capsys, "-m", "optim.lr=0.1,0.2", "recipe.zero_gamma=false,true", "seed=0,1")
    names = [cell["name"] for cell in found["cells"]]
    assert len(set(names)) == 4
    assert names[0] == "resnet8-bn-nbs32 lr=0.1 zero_gamma=False"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (319, "5 min 19 s"),
        (3599.6, "1 h 0 min"),
        (11_220, "3 h 7 min"),
        (3_600_000, "1,000 h 0 min"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 kB"),
        (999, "0.999 kB"),
        (999_600, "1 MB"),
        (1_370_000, "1.37 MB"),
        (512 * 10**6, "512 MB"),
        (99_960_000, "100 MB"),
        (80 * 10**9, "80 GB"),
        (2 * 10**15, "2000 TB"),
    ],
)
def test_a_size_has_three_digits(count, words):
    assert size(count) == words


@pytest.mark.parametrize(
    ("seeds", "words"), [([0], "0"), ([0, 1], "0,1"), ([0, 1, 2], "0-2"), ([0, 1, 2, 5, 7, 8], "0-2,5,7,8")]
)
def test_seeds_in_few_words(seeds, words):
    assert ranges(seeds) == words
