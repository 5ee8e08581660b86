"""Weights & Biases: one of its runs for each of ours, on rank 0 alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from bnbench.config import RunConfig
from bnbench.records import Record, digest

# What keeps a killed run's curve: the log is flushed every second, not every 15.
SETTINGS = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1", "WANDB_ERROR_REPORTING": "false"}

log = logging.getLogger(__name__)


def start_tracking(config: RunConfig, folder: Path) -> WandbLogger | None:
    """A started W&B run in `folder`; None with logger=none. Never fatal: without a server it is offline.

    The id follows from the identity and the sweep, so that the same run again is the same W&B run.
    """
    if config.logger.name == "none":
        return None
    import wandb

    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    identity = config.identity()
    run_id = hashlib.sha256(f"{config.name}/{digest(identity, 64)}".encode()).hexdigest()[:16]
    options: dict[str, Any] = {
        "project": config.logger.project,
        "entity": config.logger.entity,
        "group": config.name,
        "job_type": "train",
        "name": config.run_name,
        "id": run_id,
        "tags": [config.model.name, config.kind, config.data.name],
        "config": {"identity": identity, **dataclasses.asdict(config)},
        "notes": config.data.label,
        "dir": str(folder),
        "settings": wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=120),
    }
    try:
        if config.logger.mode == "online":
            options["resume"] = "allow"  # the same run again, after a failure
        run = wandb.init(mode=config.logger.mode, **options)  # type: ignore[arg-type]
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        wandb.teardown()  # else the id counts as in use
        options.pop("resume", None)
        log.warning("W&B is not reachable (%s): logging offline", str(error).splitlines()[0])
        run = wandb.init(mode="offline", **options)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, log_model=False)


def describe(logger: WandbLogger | None) -> dict[str, Any]:
    """Where the W&B run is, for the record."""
    if logger is None:
        return {}
    run = logger.experiment
    url = None if run.offline else run.url
    return {"id": run.id, "name": run.name, "group": run.group, "project": run.project, "url": url}


def finish_tracking(logger: WandbLogger | None, record: Record | None) -> None:
    """Write the summary and close, or the next run of this process would log into this one."""
    if logger is None:
        return
    import wandb

    run = logger.experiment
    with contextlib.suppress(wandb.errors.Error):
        if record is not None:
            run.summary["status"] = record.status
            run.summary.update({f"final/{k.removeprefix('final_')}": v for k, v in record.metrics.items()})
            run.summary.update({f"timing/{key}": value for key, value in record.timings.items()})
        run.finish(exit_code=0 if record is not None and record.status == "completed" else 1)
