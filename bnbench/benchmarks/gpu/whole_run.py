"""Part 5: a run as `bnbench train` makes it on the device, and whether its record says what a GPU can tell."""

from __future__ import annotations

import tempfile
from typing import Any

from bnbench.compose import compose_jobs
from bnbench.records import RECORD, read_record
from bnbench.training.run import train_run
from bnbench.training.setup import DataCache
from bnbench.training.world import World

from . import grid
from .sizes import Sizes

# In channels_last a captured step takes other kernels for ghosts.
WORDS = ("trainer.channels_last=false", "trainer.deterministic=true", "trainer.cudnn_benchmark=false")
KEPT = ("status", "metrics", "timings", "memory", "speed")


def measure(sizes: Sizes, world: World) -> dict[str, Any]:
    """What the record of a run of one epoch says, and whether it says all that a GPU's must."""
    cache, found = DataCache(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name, more in runs(sizes).items():
            words = grid.words(sizes, "norm=bn", f"norm.batch_size={sizes.grid_batch // 4}", f"dir={folder}")
            (config,) = compose_jobs([*words, "measure.speed_every=20", *WORDS, *more], multirun=False)
            train_run(config, world, cache, lambda event: None)
            record = read_record(config.folder / RECORD)
            found[name] = {key: getattr(record, key) for key in KEPT}
            found[name]["device"] = record.provenance["device"]
    weights = {found[name]["metrics"]["weights_sha256"] for name in ("again", "captured") if name in found}
    found["same_weights"] = len(weights) == 1
    found["passed"] = found["same_weights"] and all(_is_whole(found[name], sizes) for name in runs(sizes))
    return found


def runs(sizes: Sizes) -> dict[str, tuple[str, ...]]:
    """The first pays for imports and cuDNN; the third must end in the second's weights, bit by bit."""
    found: dict[str, tuple[str, ...]] = {"first": ("seed=1",), "again": ()}
    return found | ({"captured": ("trainer.cuda_graphs=true",)} if sizes.on_gpu else {})


def _is_whole(record: dict[str, Any], sizes: Sizes) -> bool:
    speed, memory = record["speed"], record["memory"]
    said = record["status"] == "completed" and speed["flops_per_step"]
    if not sizes.on_gpu:
        return bool(said)
    parts = sum(speed["parts_ms"].values())
    return bool(
        said
        and speed["mfu"]
        and memory["kind"] == "cuda allocated"
        and abs(parts / speed["step_ms"] - 1) < 0.01
    )


def table(result: dict[str, Any]) -> str:
    lines = []
    for name in [name for name in ("first", "again", "captured") if name in result]:
        record = result[name]
        speed, memory = record["speed"], record["memory"]
        parts = {part: value and round(value, 3) for part, value in speed["parts_ms"].items()}
        lines.append(
            f"{name}: {record['status']}, {speed['looks']} looks, step {speed['step_ms']} ms, {parts}"
        )
        lines.append(
            f"  MFU {speed['mfu']}, peak memory {memory['peak_bytes']} B ({memory['kind']}), {record['timings']}"
        )
    if "captured" in result:
        lines.append(
            f"captured, the weights are {'the same' if result['same_weights'] else 'others: FAILED'}"
        )
    return "\n".join(lines)
