"""What came of a run: its status, the numbers of its record, its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import statistics
from typing import Any

import torch
from torch import nn

from bnbench import data
from bnbench.config import RunConfig
from bnbench.provenance import provenance
from bnbench.records import Status, write_atomic
from bnbench.training.callbacks import Epoch, TrainingCurve
from bnbench.training.trainer import statistics_policy
from bnbench.training.world import World

WEIGHTS = "weights.pt"
LAST_EPOCHS = 5  # `final` is their median, in runs of at least twice as many


def divergence(curve: TrainingCurve, poisoned: str | None, epochs: list[Epoch]) -> str | None:
    """Where a run stopped being finite, None if it did not: its training loss, running statistics, or after."""
    if curve.diverged_at is not None:
        return f"training loss not finite at step {curve.diverged_at}"
    if poisoned is not None:
        return poisoned
    steps = (epoch.step for epoch in epochs if not math.isfinite(epoch.val_loss))
    return next((f"validation loss not finite after step {step}" for step in steps), None)


def metrics(epochs: list[Epoch], model: nn.Module, status: Status) -> dict[str, Any]:
    """`final` is the last epoch, from 10 epochs on the median of the last 5; never the best."""
    found: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    last = epochs[-LAST_EPOCHS:] if len(epochs) >= 2 * LAST_EPOCHS else epochs[-1:]
    for name, key in {
        "final_val_error": "val_error",
        "final_val_loss": "val_loss",
        "train_error": "train_error",
        "train_loss": "train_loss",
    }.items():
        done = status == "completed"
        found[name] = statistics.median(getattr(epoch, key) for epoch in last) if done else None
    return found


def timings(
    epochs: list[Epoch], fit_seconds: float, setup_seconds: float, steps_per_epoch: int
) -> dict[str, Any]:
    """Seconds; the rate is the median epoch's, without the first where there are more: it warms up."""
    found: dict[str, Any] = {"setup_seconds": setup_seconds, "fit_seconds": fit_seconds}
    steady = epochs[1:] or epochs
    if steady:
        found["images_per_s"] = statistics.median(epoch.images_per_s for epoch in steady)
        train_seconds = statistics.median(epoch.train_seconds for epoch in steady)
        found["step_ms"] = 1000 * train_seconds / steps_per_epoch
    return found


def run_provenance(config: RunConfig, world: World, splits: data.DataSplits) -> dict[str, Any]:
    cuda = world.device.type == "cuda"
    return provenance() | {
        "device": {
            "type": world.device.type,
            "name": torch.cuda.get_device_name(world.device) if cuda else None,
            "threads": torch.get_num_threads(),
        },
        "world": {
            "size": world.place.size,
            "nodes": world.place.nodes,
            "backend": world.backend,
            "origin": world.place.origin,
            "span": dataclasses.asdict(config.span),
        },
        "statistics_policy": statistics_policy(config) if config.nbs is not None else None,
        "memory_format": "contiguous",
        "dtype": config.trainer.precision,
        "flags": {
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn": torch.backends.cudnn.version(),
        },
        "data": {
            "train_images": len(splits.train),
            "test_images": len(splits.test),
            "classes": splits.train.num_classes,
            "train_sha256": splits.train.digest(),
            "test_sha256": splits.test.digest(),
            **({} if config.data.label is None else {"label": config.data.label}),
        },
    }


def save_weights(config: RunConfig, model: nn.Module) -> str:
    """Keep the weights if asked, and return what tells two trainings apart: the digest of every tensor."""
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    if config.trainer.save_weights:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(config.folder / WEIGHTS, buffer.getvalue())
    digest_ = hashlib.sha256()
    for name, tensor in state.items():
        digest_.update(name.encode())
        digest_.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest_.hexdigest()
