"""What came of a run: its status, the numbers of its record, its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bnbench import data
from bnbench.config import RunConfig
from bnbench.norms import Norm
from bnbench.provenance import provenance
from bnbench.records import write_atomic
from bnbench.training.callbacks import Evaluation, TrainingCurve, Window
from bnbench.training.trainer import statistics_policy
from bnbench.training.world import World

WEIGHTS = "weights.pt"
LAST_EPOCHS = 5  # `final` is their median, in runs of at least twice as many


def divergence(
    config: RunConfig, curve: TrainingCurve, poisoned: str | None, evaluations: list[Evaluation]
) -> str | None:
    """Where a run stopped being finite, None if it did not: its training loss, running statistics, or after.

    A range test is over when training diverges: that is its result, not its failure.
    """
    if config.schedule.name == "range":
        return None
    if curve.diverged_at is not None:
        loss = curve.windows[-1].loss
        what = (
            f"{loss:g} is above recipe.max_loss={curve.max_loss:g}" if math.isfinite(loss) else "not finite"
        )
        return f"training loss {what} at step {curve.diverged_at}"
    if poisoned is not None:
        return poisoned
    steps = (row.step for row in evaluations if not math.isfinite(row.val_loss))
    return next((f"validation loss not finite after step {step}" for step in steps), None)


def metrics(epochs: list[Evaluation], model: nn.Module, done: bool) -> dict[str, Any]:
    """`final` is the last epoch, from 10 epochs on the median of the last 5; never the best. Null unless `done`."""
    found: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    last = epochs[-LAST_EPOCHS:] if len(epochs) >= 2 * LAST_EPOCHS else epochs[-1:]
    for name, key in {
        "final_val_error": "val_error",
        "final_val_loss": "val_loss",
        "train_error": "train_error",
        "train_loss": "train_loss",
    }.items():
        found[name] = statistics.median(getattr(epoch, key) for epoch in last) if done else None
    return found


def asked(
    config: RunConfig, evaluations: list[Evaluation], curve: TrainingCurve, classes: int
) -> dict[str, Any]:
    """The metrics that only some runs have."""
    found: dict[str, Any] = {}
    if config.target_error is not None:
        found["steps_to_target"] = steps_to_target(evaluations, config.target_error)
    if config.schedule.name == "range":
        found |= largest_stable_lr(curve.points, classes)
    return found


def steps_to_target(evaluations: Sequence[Evaluation], target_error: float) -> int | None:
    """The step of the first evaluation whose error (percent) is at most the target; None if there is none."""
    return next((row.step for row in evaluations if row.val_error <= target_error), None)


def largest_stable_lr(points: Sequence[tuple[int, float, float]], classes: int) -> dict[str, Any]:
    """What a range test says, from (step, learning rate, training loss) of each window of steps.

    Training is unstable from the first window on whose loss is not finite, or has lost half of what training had
    gained over chance, ln(classes); below a tenth of chance gained, nothing is lost yet. `largest_stable_lr` is the
    rate of the window before that one: of the last, if none was unstable (`lr_range_exhausted`); null, if no window
    was stable or training gained nothing.
    """
    chance, best, stable = math.log(classes), math.log(classes), None
    for _, lr, loss in points:
        gained = chance - best
        if not math.isfinite(loss) or (gained >= 0.1 * chance and loss > best + 0.5 * gained):
            return {"largest_stable_lr": stable, "lr_range_exhausted": False}
        best, stable = min(best, loss), lr
    learned = chance - best >= 0.1 * chance
    return {"largest_stable_lr": stable if learned else None, "lr_range_exhausted": learned}


def timings(
    evaluations: list[Evaluation], curve: TrainingCurve, fit_seconds: float, setup_seconds: float
) -> dict[str, Any]:
    """Seconds; the rate is the median one between evaluations, which are no part of it.

    Without the first stretch, which warms up; of a run with one evaluation, by the windows of its curve but the first,
    where it has more.
    """
    found: dict[str, Any] = {"setup_seconds": setup_seconds, "fit_seconds": fit_seconds}
    if not evaluations:
        return found
    stretches: Sequence[Evaluation | Window] = evaluations[1:] or curve.windows[1:] or evaluations
    found["images_per_s"] = statistics.median(row.images_per_s for row in stretches)
    found["step_ms"] = 1000 * curve.global_batch / found["images_per_s"]
    return found


def data_wait(watched: data.WatchedLoader, evaluations: list[Evaluation], world: World) -> dict[str, Any]:
    """`data_wait_share`, 0 to 1: the share of training that the rank which waits longest spends waiting for batches.

    A median epoch's; call it on every rank. Empty for a run that did not come to an evaluation.
    """
    seconds: dict[int, float] = {}
    for row in evaluations:
        seconds[row.epoch] = seconds.get(row.epoch, 0.0) + row.train_seconds
    share = watched.share(seconds)
    return {} if share is None else {"data_wait_share": world.largest(min(share, 1.0))}


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
        "memory_format": "channels_last" if config.trainer.channels_last else "contiguous",
        "compile": config.trainer.compile,
        "cuda_graphs": config.trainer.cuda_graphs,
        "dtype": config.trainer.precision,
        "flags": {
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn": torch.backends.cudnn.version(),
        },
        "data": data.describe(config.data, splits),
    }


def norm_kernels(model: nn.Module) -> dict[str, int]:
    """How many of the norms normalized by which kernels in their last forward pass: torch's or Triton's."""
    return dict(Counter(norm.kernel for norm in model.modules() if isinstance(norm, Norm)))


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
