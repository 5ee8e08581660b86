"""What a job asks of SLURM, and how a sweep is cut into jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from bnbench.suggest import unknown

from .fields import STRICT, Int, positive
from .trainer import TrainerConfig

TARGET = "hydra_plugins.bnbench_launchers.slurm.SlurmLauncher"
# What sbatch is told for reasons that bnbench relies on: where it comes from instead.
OURS = {
    "nodes": "trainer.num_nodes",
    "ntasks": "trainer.num_nodes and trainer.devices",
    "ntasks-per-node": "trainer.devices",
    "time": "hydra.launcher.time_minutes",
    "mem": "hydra.launcher.mem_gb",
    "signal": "hydra.launcher.grace_seconds",
    "array": "hydra.launcher.cells_per_job and array_parallelism",
    "requeue": "nothing: a job is always requeued",
    "no-requeue": "nothing: a job is always requeued",
    "open-mode": "nothing: the logs of all starts of a job are one",
    "output": "nothing: the logs lie beside the submission",
    "error": "nothing: the logs lie beside the submission",
}


@dataclass(frozen=True)
class SlurmConfig:
    """The keys of `hydra/launcher=slurm`; null leaves a choice to the cluster."""

    __pydantic_config__ = STRICT
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    nodelist: str | None
    exclude: str | None
    gpus_per_node: Int | None
    cpus_per_task: Int | None
    mem_gb: float | None
    time_minutes: Int
    grace_seconds: Int
    cells_per_job: Int
    array_parallelism: Int
    max_restarts: Int
    wait: bool
    setup: list[str] | None
    additional_parameters: dict[str, Any] | None

    def __post_init__(self) -> None:
        for key in ("cpus_per_task", "time_minutes", "grace_seconds", "cells_per_job", "array_parallelism"):
            positive(f"hydra.launcher.{key}", getattr(self, key))
        for key in ("gpus_per_node", "max_restarts"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"hydra.launcher.{key}={value} must be 0 or more")
        if self.mem_gb is not None and self.mem_gb <= 0:
            raise ValueError(f"hydra.launcher.mem_gb={self.mem_gb:g} must be above 0")
        if self.grace_seconds >= 60 * self.time_minutes:
            raise ValueError(
                f"hydra.launcher.grace_seconds={self.grace_seconds} is all of hydra.launcher.time_minutes="
                f"{self.time_minutes}: a job would be told to stop as it starts; lower it"
            )
        for key in self.additional_parameters or {}:
            name = key.replace("_", "-")
            instead = OURS.get(name) or (f"hydra.launcher.{key}" if hasattr(self, key) else None)
            if instead:
                raise ValueError(f"hydra.launcher.additional_parameters: {name} is set by {instead}")

    def gpus(self, trainer: TrainerConfig) -> int:
        """GPUs of a node. ValueError if its ranks would have to share them."""
        if trainer.accelerator == "cpu":
            return self.gpus_per_node or 0
        if self.gpus_per_node is None:
            return trainer.devices
        if 0 < self.gpus_per_node < trainer.devices or (
            self.gpus_per_node == 0 and trainer.accelerator != "auto"
        ):
            raise ValueError(
                f"hydra.launcher.gpus_per_node={self.gpus_per_node} with trainer.devices={trainer.devices}: every rank "
                f"needs its own GPU; set trainer.devices={self.gpus_per_node or 1} or trainer.accelerator=cpu"
            )
        return self.gpus_per_node


def slurm_config(launcher: Mapping[str, Any]) -> SlurmConfig | None:
    """The keys of a composed `hydra.launcher`; None if it is another. ValueError with one line for a mistake."""
    if launcher.get("_target_") != TARGET:
        return None
    values = {str(key): value for key, value in launcher.items() if key != "_target_"}
    for key in values:
        if key not in SlurmConfig.__dataclass_fields__:
            raise ValueError(unknown("key", f"hydra.launcher.{key}", list(SlurmConfig.__dataclass_fields__)))
    try:
        return pydantic.TypeAdapter(SlurmConfig).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        rule = first.get("ctx", {}).get("error")
        if rule is not None:
            raise ValueError(str(rule)) from None
        key = str(first["loc"][0])
        problem = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"hydra.launcher.{key}={values.get(key)!r}: {problem}") from None
