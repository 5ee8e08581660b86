"""The sbatch files on a real cluster: the words follow the file's name, srun starts the ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.commands import records
from tests.slurm.jobs import NO_GPU, ROOT, SLOW_RUN, TINY_RUN, Slurm

pytestmark = pytest.mark.slurm
SINGLE, MULTI, ARRAY = (
    str(ROOT / "slurm" / f"{name}.sbatch") for name in ("single_node", "multi_node", "array")
)


def weights(folder: Path) -> dict[str, str]:
    return {record.id: record.metrics["weights_sha256"] for record in records(folder)}


def test_one_node_and_two_train_what_the_own_ranks_do(slurm: Slurm) -> None:
    words = ("-m", *TINY_RUN, "norm=bn,syncbn", "seed=0")
    one = slurm.sbatch(*NO_GPU, SINGLE, *words, "name=one")
    two = slurm.sbatch(*NO_GPU, "--ntasks-per-node=1", MULTI, *words, "name=two")
    slurm.wait(one, "COMPLETED")
    slurm.wait(two, "COMPLETED")
    assert slurm.bnbench("train", *words, "name=own").returncode == 0
    own = weights(slurm.place / "runs/own")
    assert len(own) == 2
    assert weights(slurm.place / "runs/one") == own
    assert {record.provenance["world"]["origin"] for record in records(slurm.place / "runs/one")} == {"srun"}
    # Two devices of one node, or one of two, give the same steps.
    assert weights(slurm.place / "runs/two") == own
    for record in records(slurm.place / "runs/two"):
        assert record.provenance["slurm_job"] == two
        assert record.config["trainer"]["num_nodes"] == 2
    said = (slurm.place / f"bnbench-{one}.out").read_text()
    assert said.count("2 cell(s), 2 run(s), on 2 rank(s)") == 1, said
    assert "leaked" not in said


def test_another_world_than_the_jobs_is_refused_before_torch_with_the_line_to_change(slurm: Slurm) -> None:
    job = slurm.sbatch(
        *NO_GPU, SINGLE, *TINY_RUN, "trainer.devices=3", "global_batch=66", PYTHONPROFILEIMPORTTIME="1"
    )
    ended = slurm.wait(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    said = (slurm.place / f"bnbench-{job}.out").read_text()
    assert (
        "bnbench train: srun started 2 rank(s), 2 on each of 1 node(s), but the run asks for trainer.devices=3 x "
        "trainer.num_nodes=1"
    ) in said
    assert "#SBATCH --nodes=1 --ntasks-per-node=3" in said
    assert " bnbench.launch" in said and " torch\n" not in said
    assert not (slurm.place / "runs").exists()


def test_tasks_without_srun_do_not_hang_and_are_named(slurm: Slurm) -> None:
    script = slurm.place / "bare.sbatch"
    script.write_text("#!/bin/bash\nbnbench train " + " ".join(TINY_RUN) + "\n")
    job = slurm.sbatch("--ntasks=2", "--output=bare.out", str(script))
    slurm.wait(job, "COMPLETED")
    said = (slurm.place / "bare.out").read_text()
    assert "SLURM gave this job 2 tasks, and bnbench was started without srun" in said
    assert len(records(slurm.place / "runs")) == 1


def test_the_tasks_of_an_array_share_a_sweep(slurm: Slurm) -> None:
    """Runs of two seconds and more, so that the later start finds some left."""
    words = ("-m", *SLOW_RUN, "norm=bn,gn", "seed=0,1,2,3", "name=shared")
    job = slurm.sbatch(*NO_GPU, "--array=0-1", "--ntasks-per-node=1", ARRAY, *words, SLOW="0.02")
    slurm.wait(f"{job}_0", "COMPLETED")
    slurm.wait(f"{job}_1", "COMPLETED")
    found = records(slurm.place / "runs/shared")
    assert len(found) == 8 and {record.status for record in found} == {"completed"}
    said = "".join(path.read_text() for path in slurm.place.glob(f"bnbench-{job}_*.out"))
    for record in found:
        assert said.count(f"{record.name}: completed, validation error") == 1, said
    assert len({record.provenance["slurm_job"] for record in found}) == 2, "both took a part"


def test_a_frozen_copy_is_what_the_job_runs(slurm: Slurm) -> None:
    slurm.call(
        "cp", "-r", *(str(ROOT / name) for name in ("bnbench", "conf", "hydra_plugins")), str(slurm.place)
    )
    checkout = {"PYTHONPATH": str(slurm.place)}
    said = slurm.call(
        "bash",
        str(ROOT / "slurm" / "submit"),
        "--hold",
        *NO_GPU,
        "--ntasks-per-node=1",
        SINGLE,
        *TINY_RUN,
        **checkout,
    )
    job = said.split()[-1]
    (slurm.place / "bnbench" / "train.py").write_text("raise SystemExit('edited while the job waited')\n")
    slurm.call("scontrol", "release", job)
    slurm.wait(job, "COMPLETED")
    assert len(records(slurm.place / "runs")) == 1
