"""Who started this process is told from the environment alone."""

from __future__ import annotations

import pytest

from bnbench.launch import Place, check_world, place_given, speaks

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "bench",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
}


def test_a_rank_of_torchrun():
    assert place_given(TORCHRUN) == Place(3, 4, 1, 2, "torchrun")
    assert place_given(TORCHRUN).nodes == 2


@pytest.mark.parametrize("lost", TORCHRUN)
def test_half_an_environment_is_no_world(lost):
    """A leftover RANK or MASTER_ADDR in a shell must not make a single process wait for others."""
    assert place_given({key: value for key, value in TORCHRUN.items() if key != lost}) is None


def test_a_task_of_srun():
    assert place_given(SRUN) == Place(3, 4, 1, 2, "srun")


def test_torchrun_inside_a_slurm_job_counts():
    assert place_given(SRUN | TORCHRUN) == Place(3, 4, 1, 2, "torchrun")


def test_one_process_in_a_slurm_job_starts_its_own_ranks():
    batch_script = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bench", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert place_given(batch_script) is None
    for name in ("bash", "interactive"):  # srun --pty bash; salloc with a shell on the node
        prompt = {"SLURM_JOB_NAME": name, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        assert place_given(prompt | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}) is None
    assert place_given({}) is None


def test_tasks_of_srun_within_salloc_are_a_world():
    """salloc names the job `interactive`, and srun's tasks inherit that name; they are ranks all the same."""
    assert place_given(SRUN | {"SLURM_JOB_NAME": "interactive"}) == Place(3, 4, 1, 2, "srun")


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (8, 1), (1, 2), (4, 3)])
def test_the_world_that_is_asked_for_passes(devices, nodes):
    check_world(Place(0, devices * nodes, 0, devices, "torchrun"), devices, nodes)
    if nodes == 1:
        check_world(None, devices, 1)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (1, 4), (2, 3), (1, 2)])
def test_another_world_is_refused_with_the_words_that_fit(devices, nodes):
    given = Place(0, 4, 0, 2, "torchrun")
    with pytest.raises(ValueError, match=r"torchrun started 4 rank\(s\), 2 on each of 2 node\(s\)") as caught:
        check_world(given, devices, nodes)
    message = str(caught.value)
    assert f"trainer.devices={devices} x trainer.num_nodes={nodes}" in message
    assert "set trainer.devices=2 trainer.num_nodes=2" in message
    check_world(given, 2, 2)


@pytest.mark.parametrize(("tasks", "nodes"), [(5, 2), (3, 2), (7, 3)])
def test_a_world_with_uneven_nodes_fits_no_request(tasks, nodes):
    """5 tasks on 2 nodes are not 2 x 2: a fifth rank would train on images of a step of four."""
    place = place_given(
        SRUN | {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_PROCID": "0"}
    )
    assert place.size == tasks
    for devices in range(1, tasks + 1):
        with pytest.raises(ValueError, match=f"srun started {tasks}"):
            check_world(place, devices, nodes)


def test_one_process_cannot_start_other_nodes():
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2.*torchrun or srun"):
        check_world(None, 2, 2)


def test_one_voice():
    assert speaks(None)
    assert [speaks(Place(rank, 2, rank, 2)) for rank in range(2)] == [True, False]
