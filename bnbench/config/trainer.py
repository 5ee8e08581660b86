"""The world that trains a run, and where its curves go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bnbench import catalog

from .fields import STRICT, Float, Int, positive


@dataclass(frozen=True)
class TrainerConfig:
    __pydantic_config__ = STRICT
    accelerator: str
    devices: Int
    num_nodes: Int
    precision: str
    tf32: bool
    cudnn_benchmark: bool
    deterministic: bool
    channels_last: bool
    compile: bool
    cuda_graphs: bool
    threads: Int | None
    log_every: Int
    checkpoint_minutes: float | None
    time_limit_minutes: float | None
    collective_timeout_minutes: float
    resume_world: Int | None
    save_weights: bool

    def __post_init__(self) -> None:
        catalog.check_known("trainer.accelerator", self.accelerator, catalog.ACCELERATORS)
        catalog.check_known("trainer.precision", self.precision, catalog.PRECISIONS)
        for key in ("devices", "num_nodes", "threads", "log_every", "resume_world"):
            positive(f"trainer.{key}", getattr(self, key))
        none = ", or null for none"
        positive("trainer.time_limit_minutes", self.time_limit_minutes, way_out=none)
        positive("trainer.checkpoint_minutes", self.checkpoint_minutes, inclusive=True, way_out=none)
        positive("trainer.collective_timeout_minutes", self.collective_timeout_minutes)
        if self.cuda_graphs and self.world_size > 1:
            raise ValueError(
                f"trainer.cuda_graphs=true with {self.world_size} ranks: gradients and norms that cross ranks are not "
                "captured; set trainer.devices=1 and trainer.num_nodes=1, or trainer.cuda_graphs=false"
            )
        if self.cuda_graphs and self.compile:
            raise ValueError(
                "trainer.cuda_graphs=true with trainer.compile=true: a network is captured as it stands, or compiled; "
                "set one of them to false"
            )

    def execution(self) -> dict[str, Any]:
        """What may change rounding and time, and nothing else: recorded factors of the identity."""
        keys = ("tf32", "cudnn_benchmark", "deterministic", "channels_last", "compile")
        # Only where it is on: without it a run is what it was before there was the key.
        return {key: getattr(self, key) for key in keys} | ({"cuda_graphs": True} if self.cuda_graphs else {})

    @property
    def collective_timeout(self) -> timedelta:
        return timedelta(minutes=self.collective_timeout_minutes)

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class LoggerConfig:
    __pydantic_config__ = STRICT
    name: str
    project: str = "bnbench"
    entity: str | None = None
    mode: str = "offline"
    group: str | None = None  # the sweep's name
    tags: tuple[str, ...] = ()
    init_timeout: Float = 30.0  # seconds
    finish_timeout: Float = 60.0

    def __post_init__(self) -> None:
        catalog.check_known("logger", self.name, ("wandb", "none"))
        catalog.check_known(
            "logger.mode (which follows WANDB_MODE)", self.mode, ("offline", "online", "disabled")
        )
        for key in ("init_timeout", "finish_timeout"):
            positive(f"logger.{key}", getattr(self, key))
