"""A sweep cut into jobs, their script, and what a job's starts decide; without a cluster (tests/slurm/ has one)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnbench import provenance
from bnbench.compose import compose_jobs, read_request
from bnbench.config import RunConfig
from bnbench.config.slurm import OURS, TARGET, SlurmConfig, slurm_config
from bnbench.launch import idle_tasks
from bnbench.records import Record, digest, write_record
from bnbench.sweep import slurm, submission
from bnbench.sweep.plan import Plan
from bnbench.sweep.slurm import SUBMITTED, JobArray, job_arrays, submit

ROOT = Path(__file__).parents[2]
SBATCH = sorted((ROOT / "slurm").glob("*.sbatch"))


def options(*words: str) -> SlurmConfig:
    request = read_request(["hydra/launcher=slurm", *words], multirun=True)
    found = slurm_config(request.launcher)
    assert found is not None
    return found


def runs(*words: str) -> list[RunConfig]:
    return compose_jobs(
        ["logger=none", "trainer.devices=1", "trainer.accelerator=cpu", *words], multirun=True
    )


def write(run: RunConfig, status: str, job: str | None = None) -> None:
    write_record(
        run.folder,
        Record(
            schema=1, id=digest(run.identity()), name=run.run_name, identity=run.identity(), status=status,
            config=dataclasses.asdict(run), metrics={}, timings={},
            provenance={"slurm_job": job, "code": provenance.code_digest()},
        ),
    )  # fmt: skip


# The keys


def test_the_keys_of_the_config_group_are_those_of_the_dataclass_and_all_have_a_default() -> None:
    text = (ROOT / "conf/hydra/launcher/slurm.yaml").read_text()
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert keys == ["_target_", *SlurmConfig.__dataclass_fields__]
    assert options().time_minutes == 60
    assert slurm_config({"_target_": "another.Launcher"}) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["time_minutes=0"], "hydra.launcher.time_minutes=0 must be"),
        (["cells_per_job=-1"], "hydra.launcher.cells_per_job=-1 must be"),
        (["cells_per_job=2.5"], "hydra.launcher.cells_per_job=2.5: "),
        (["max_restarts=-1"], "hydra.launcher.max_restarts=-1 must be 0 or more"),
        (["mem_gb=0"], "hydra.launcher.mem_gb=0 must be above 0"),
        (["time_minutes=2", "grace_seconds=120"], "told to stop as it starts"),
        (["additional_parameters={ntasks: 3}"], "ntasks is set by trainer.num_nodes and trainer.devices"),
        (["additional_parameters={partition: x}"], "partition is set by hydra.launcher.partition"),
    ],
)
def test_a_wrong_value_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        options(*(f"hydra.launcher.{word}" for word in words))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_what_bnbench_relies_on_cannot_be_overridden(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is set by"):
        dataclasses.replace(options(), additional_parameters={name: 1})


def test_gpus_are_asked_for_by_rank_unless_the_cpu_is() -> None:
    trainer = compose_jobs(["trainer.devices=4"])[0].trainer
    assert options().gpus(trainer) == 4
    assert options("hydra.launcher.gpus_per_node=8").gpus(trainer) == 8
    assert options("hydra.launcher.gpus_per_node=0").gpus(trainer) == 0
    assert options().gpus(dataclasses.replace(trainer, accelerator="cpu")) == 0
    with pytest.raises(ValueError, match=r"gpus_per_node=2 with trainer\.devices=4"):
        options("hydra.launcher.gpus_per_node=2").gpus(trainer)


# The jobs


def test_a_job_has_whole_cells_in_the_order_asked() -> None:
    asked = runs("norm=bn,gn,ln", "seed=0,1")
    (array,) = job_arrays(asked, options("hydra.launcher.cells_per_job=2"))
    assert [[(run.norm.name, run.seed) for run in job] for job in array.jobs] == [
        [("bn", 0), ("bn", 1), ("gn", 0), ("gn", 1)],
        [("ln", 0), ("ln", 1)],
    ]
    assert [len(job) for job in job_arrays(asked, options())[0].jobs] == [2, 2, 2]
    assert job_arrays([], options()) == []


def test_runs_that_want_other_worlds_are_other_arrays() -> None:
    asked = runs("norm=bn", "trainer.devices=1,2", "trainer.num_nodes=1,2")
    arrays = job_arrays(asked, options())
    assert [array.folder.name for array in arrays] == ["1x1", "1x2", "2x1", "2x2"]
    for array in arrays:
        devices, nodes = array.folder.name.split("x")
        assert f"#SBATCH --ntasks-per-node={devices}\n" in array.text
        assert f"#SBATCH --nodes={nodes}\n" in array.text


def test_the_script_holds_what_was_asked_and_bash_can_read_it() -> None:
    chosen = {
        "partition": "gpu", "account": "lab", "qos": "high", "constraint": "a100", "nodelist": "n1", "exclude": "n2",
        "gpus_per_node": 2, "cpus_per_task": 3, "time_minutes": 90, "grace_seconds": 77,
    }  # fmt: skip
    words = [f"hydra.launcher.{key}={value}" for key, value in chosen.items()]
    words += ["hydra.launcher.mem_gb=1.5", "hydra.launcher.setup=[module load cuda]"]
    words += [
        "hydra.launcher.array_parallelism=2",
        "hydra.launcher.additional_parameters={reservation: icml}",
    ]
    (array,) = job_arrays(runs("norm=bn,gn,ln"), options(*words))
    for line in (
        "--partition=gpu", "--account=lab", "--qos=high", "--constraint=a100", "--nodelist=n1", "--exclude=n2",
        "--gpus-per-node=2", "--cpus-per-task=3", "--time=90", "--signal=USR2@77", "--mem=1536M", "--requeue",
        "--open-mode=append", "--array=0-2%2", "--reservation=icml", "--job-name=bnbench-scratch",
    ):  # fmt: skip
        assert f"\n#SBATCH {line}\n" in array.text, line
    assert "wckey" not in array.text
    lines = array.text.splitlines()
    trap, begin, srun, end = (
        next(i for i, line in enumerate(lines) if words in line)
        for words in ("trap : TERM", "slurm_job begin", "srun --", "slurm_job end")
    )
    assert lines.index("module load cuda") < trap < begin < srun < end
    assert lines[end].endswith(" $?") and not any(line and line[0] != "#" for line in lines[srun + 1 : end])
    assert subprocess.run(["bash", "-n"], input=array.text, text=True).returncode == 0


def test_two_submissions_at_once_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one found the same number free; what SLURM refuses of it takes nothing of the other's."""
    asked = runs("norm=bn", f"dir={tmp_path}")
    arrays = job_arrays(asked, options())

    def refuse(array: JobArray) -> list[str]:
        assert array.folder.parent.name == "2" and str(array.folder) in array.text
        raise ValueError("made up")

    def meanwhile(*_: Any) -> list[JobArray]:
        monkeypatch.undo()
        monkeypatch.setattr(slurm, "_hand_over", refuse)
        (tmp_path / ".submissions/1/code").mkdir(parents=True)
        return arrays

    monkeypatch.setattr(slurm, "job_arrays", meanwhile)
    with pytest.raises(ValueError, match="made up"):
        submit(asked, options())
    assert [path.name for path in (tmp_path / ".submissions").iterdir()] == ["1"]
    assert (tmp_path / ".submissions/1/code").is_dir()


def test_the_next_submission_is_numbered_after_the_last(tmp_path: Path) -> None:
    asked = runs("norm=bn", f"dir={tmp_path}")
    assert job_arrays(asked, options())[0].folder == tmp_path / ".submissions" / "1" / "1x1"
    (tmp_path / ".submissions" / "10").mkdir(parents=True)
    (tmp_path / ".submissions" / "9").mkdir()
    assert job_arrays(asked, options())[0].folder == tmp_path / ".submissions" / "11" / "1x1"


def test_while_slurm_does_not_answer_nothing_is_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = runs("norm=bn", f"dir={tmp_path}")
    known = tmp_path / ".submissions" / "1" / SUBMITTED
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps({str(run.folder): "77_0"}))
    (tmp_path / "squeue").write_text(
        "#!/bin/bash\necho slurm_load_jobs error: Unable to contact >&2; exit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(submission, "submit", lambda *_: pytest.fail("submitted"))
    with pytest.raises(ValueError, match=r"SLURM does not answer: whether it still has jobs 77 .* try again"):
        submission.hand_over(Plan(todo=[run]), options())


def test_without_submitit_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[slurm\]'"):
        job_arrays(runs("norm=bn"), options())


def test_tasks_that_are_no_ranks_are_named_once() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "b", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    told = idle_tasks(2, batch)
    assert told and "4 tasks" in told and "2 rank(s)" in told and "srun bnbench train" in told
    assert idle_tasks(2, batch | {"SLURM_NTASKS": "1"}) is None
    assert idle_tasks(2, batch | {"SLURM_STEP_NUM_TASKS": "4"}) is None, "tasks of srun are ranks"
    assert idle_tasks(2, {}) is None


# The sbatch files


def test_the_sbatch_files_differ_by_their_head_only() -> None:
    assert [path.stem for path in SBATCH] == ["array", "multi_node", "single_node"]
    tails = {path.read_text().partition("\nset -euo pipefail\n")[2] for path in SBATCH}
    assert len(tails) == 1 and tails != {""}


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_an_sbatch_file_has_the_facts_at_its_top(path: Path) -> None:
    text = path.read_text()
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    for line in ("--requeue", "--open-mode=append", "--signal=USR1@120", "--nodes=", "--ntasks-per-node="):
        assert f"\n#SBATCH {line}" in text, line
    facts = text.index("# ---- The cluster"), text.index("# ---- The same everywhere")
    for key in ("partition", "account", "gpus-per-node", "cpus-per-task", "time"):
        assert facts[0] < text.index(f"--{key}=") < facts[1], key
    assert max(m.start() for m in re.finditer(r"^#+SBATCH", text, re.MULTILINE)) < text.index("\nset -euo"), (
        "sbatch reads no further than the first command"
    )


def test_the_launcher_is_the_plugin() -> None:
    from hydra_plugins.bnbench_launchers.slurm import SlurmLauncher

    assert f"{SlurmLauncher.__module__}.{SlurmLauncher.__name__}" == TARGET
