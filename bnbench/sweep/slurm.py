"""`hydra/launcher=slurm`: a sweep cut into jobs, the script of each, and its submission. No torch.

<dir>/.submissions/<n>/code/                 what the jobs run: the code when they were submitted
<dir>/.submissions/<n>/<devices>x<nodes>/    an array of jobs that want the same world: jobs.json, scripts, logs
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.config.slurm import SlurmConfig
from bnbench.folders import remove_empty
from bnbench.records import cell_of, digest, write_atomic
from bnbench.sweep.snapshot import freeze, own_modules

FOLDER = ".submissions"
CODE = "code"
JOBS = "jobs.json"
SUBMITTED = "submitted.json"


@dataclass(frozen=True)
class JobArray:
    """Jobs that differ by their runs only; `text` is the script that sbatch is given for all of them."""

    folder: Path
    jobs: list[list[RunConfig]]
    text: str
    executor: Any

    @property
    def runs(self) -> list[RunConfig]:
        return [run for job in self.jobs for run in job]

    def as_json(self) -> dict[str, Any]:
        return {
            "jobs": [[run.run_name for run in job] for job in self.jobs],
            "folder": str(self.folder),
            "script": self.text,
        }


def job_arrays(todo: Sequence[RunConfig], options: SlurmConfig) -> list[JobArray]:
    """What `submit` would submit: nothing is written. ValueError if submitit is missing, or for a wrong number."""
    if not todo:
        return []
    _submitit()
    place = _next_place(Path(todo[0].dir))
    worlds: dict[tuple[int, int, str], list[RunConfig]] = {}
    for run in todo:
        worlds.setdefault((run.trainer.devices, run.trainer.num_nodes, run.trainer.accelerator), []).append(
            run
        )
    arrays = []
    for (devices, nodes, accelerator), runs in worlds.items():
        alone = sum(known[:2] == (devices, nodes) for known in worlds) == 1
        name = f"{devices}x{nodes}" + ("" if alone else f"-{accelerator}")
        arrays.append(_array(place / name, place / CODE, _cut(runs, options.cells_per_job), options))
    return arrays


def submit(todo: Sequence[RunConfig], options: SlurmConfig) -> tuple[list[JobArray], dict[Path, str]]:
    """Freeze the code and submit; the arrays, and the job of each run by the run's folder.

    ValueError if SLURM refuses: nothing is left then, but for arrays that it took before.
    """
    arrays = _claimed(todo, options)
    place = arrays[0].folder.parent
    found: dict[Path, str] = {}
    try:
        modules = own_modules([run for array in arrays for run in array.runs])
        freeze(place / CODE, modules, output=place.parents[1].resolve())
        for array in arrays:
            array.folder.mkdir()
            jobs = [[dataclasses.asdict(run) for run in job] for job in array.jobs]
            known = {"max_restarts": options.max_restarts, "jobs": jobs}
            (array.folder / JOBS).write_text(json.dumps(known, indent=1))
            for job, runs in zip(_hand_over(array), array.jobs, strict=True):
                found |= {run.folder: job for run in runs}
            numbers = {str(run.absolute()): job for run, job in found.items()}
            write_atomic(place / SUBMITTED, json.dumps(numbers, indent=1).encode())
    except BaseException:
        if not found:
            shutil.rmtree(place, ignore_errors=True)
            remove_empty([place.parent])
        raise
    return arrays, found


def _claimed(todo: Sequence[RunConfig], options: SlurmConfig) -> list[JobArray]:
    """The arrays, with a folder that no other submission has, one that is made at the same time included."""
    while True:
        arrays = job_arrays(todo, options)
        try:
            arrays[0].folder.parent.mkdir(parents=True)
        except FileExistsError:
            continue
        return arrays


def check_commands() -> None:
    missing = [
        command for command in ("sbatch", "squeue", "scontrol", "srun") if shutil.which(command) is None
    ]
    if missing:
        raise ValueError(
            f"hydra/launcher=slurm: there is no {missing[0]} on PATH: submit from a login node of the cluster; "
            "bnbench plan shows the job anywhere"
        )


def told(arrays: Sequence[JobArray]) -> Iterator[str]:
    """The jobs in a line each."""
    for array in arrays:
        trainer, runs = array.runs[0].trainer, len(array.runs)
        cells = max(len({_cell(run) for run in job}) for job in array.jobs)
        yield (
            f"SLURM: {len(array.jobs)} job(s) of at most {cells} cell(s), {runs} run(s), each job on "
            f"{trainer.num_nodes} node(s) x {trainer.devices} rank(s)"
        )


def described(arrays: Sequence[JobArray]) -> Iterator[str]:
    """The same with the script of each array, as sbatch would get it."""
    for array, line in zip(arrays, told(arrays), strict=True):
        yield f"\n{line}:"
        for each in array.text.rstrip().splitlines():
            yield f"    {each}".rstrip()


def check_submission(todo: Sequence[RunConfig], options: SlurmConfig) -> None:
    """Raise ValueError for what `submit` would: before Hydra makes a folder."""
    check_commands()
    _submitit()
    for run in todo:
        options.gpus(run.trainer)


def _cell(run: RunConfig) -> str:
    return digest(cell_of(run.identity()), 64)


def _cut(runs: Sequence[RunConfig], cells_per_job: int) -> list[list[RunConfig]]:
    """Jobs of so many whole cells, in the order asked."""
    cells: dict[str, list[RunConfig]] = {}
    for run in runs:
        cells.setdefault(_cell(run), []).append(run)
    whole = list(cells.values())
    return [
        [run for cell in whole[first : first + cells_per_job] for run in cell]
        for first in range(0, len(whole), cells_per_job)
    ]


def _next_place(sweep: Path) -> Path:
    """Numbered, so that the plan can tell where the next one will be."""
    folder = sweep.absolute() / FOLDER
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return folder / str(max(taken, default=0) + 1)


def _submitit() -> None:
    if find_spec("submitit") is None:
        raise ValueError(
            "hydra/launcher=slurm needs submitit, which is not installed here: pip install '.[slurm]' in bnbench's "
            "checkout"
        )


def _array(folder: Path, code: Path, jobs: list[list[RunConfig]], options: SlurmConfig) -> JobArray:
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # a script can be looked at where there is no SLURM

    run = jobs[0][0]
    executor = Executor(folder)
    chosen = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "cpus_per_task")
    executor.update_parameters(
        **{key: value for key in chosen if (value := getattr(options, key)) is not None},
        **({} if options.mem_gb is None else {"mem": f"{round(1024 * options.mem_gb)}M"}),
        **({"gpus_per_node": gpus} if (gpus := options.gpus(run.trainer)) else {}),
        job_name=f"bnbench-{run.name}",
        time=options.time_minutes,
        nodes=run.trainer.num_nodes,
        ntasks_per_node=run.trainer.devices,
        array_parallelism=options.array_parallelism,
        signal_delay_s=options.grace_seconds,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={"requeue": True, **(options.additional_parameters or {})},
        srun_args=["--kill-on-bad-exit=1", "--open-mode=append"],
        setup=[*(options.setup or []), *_before(code, folder)],
        teardown=_after(folder),
    )
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    text = executor._make_submission_file_text(executor._submitit_command_str, "")
    executor.parameters.pop("map_count", None)
    return JobArray(folder, jobs, text, executor)


def _before(code: Path, folder: Path) -> list[str]:
    """What a job's shell does before srun: the frozen code goes before any other, the folder it starts in included."""
    return [
        "trap : TERM  # at its time limit SLURM ends this shell as well, which has to see srun's end",
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # which srun does not take from sbatch by itself',
        f"{_job_module(folder, 'begin')} || exit",
    ]


def _after(folder: Path) -> list[str]:
    return [f"{_job_module(folder, 'end')} $?"]


def _job_module(folder: Path, step: str) -> str:
    return f"{shlex.quote(sys.executable)} -m bnbench.sweep.slurm_job {step} {shlex.quote(str(folder))}"


def _hand_over(array: JobArray) -> list[str]:
    """Submit an array; the number of each job, as squeue has it."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from bnbench.sweep.slurm_job import train

    try:
        jobs = array.executor.map_array(train, [str(array.folder)] * len(array.jobs), range(len(array.jobs)))
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line]
        raise ValueError(f"SLURM takes no such job: {lines[-1] if lines else error}") from None
    return [job.job_id for job in jobs]
