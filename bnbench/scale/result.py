"""What one call of `bnbench scale` found, and the files that keep it. No torch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.provenance import provenance
from bnbench.records import write_atomic

from .cost_model import Compute
from .measured import CONFIDENCE, Measured
from .prediction import Check, Cluster, Row, links_of

HIDDEN = ("--out", "--json")  # where a user keeps results is no part of how to repeat them


@dataclass(frozen=True)
class Result:
    """`found`: what was measured, as JSON, or at least what the model sends; `compute`: of the device predicted for."""

    argv: Sequence[str]
    config: RunConfig
    cluster: Cluster
    found: dict[str, Any]
    compute: Compute
    measured: Measured | None
    checks: list[Check]
    rows: list[Row]

    @property
    def command(self) -> str:
        words = list(self.argv)
        for n, word in reversed(list(enumerate(words))):
            if word.partition("=")[0] in HIDDEN or (n and words[n - 1] == "--out"):
                del words[n]
        return shlex.join(["bnbench", "scale", *words])

    @property
    def unit(self) -> str:
        """What the predicted world is made of."""
        return "ranks" if self.found.get("device") == "cpu" else "GPUs"

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return provenance()

    def as_json(self) -> dict[str, Any]:
        """Times in seconds, payloads in bytes. A link's beta is null where no message was long enough to tell it."""
        return {
            "command": self.command,
            "model": self.config.model.label,
            "per_device_batch": self.config.per_device_batch,
            "cluster": {"gpus_per_node": self.cluster.node, "group": self.cluster.group},
            "compute": dataclasses.asdict(self.compute),
            "links": links_of(self.measured, self.cluster),
            "confidence": None if self.measured is None else CONFIDENCE,
            "checks": [dataclasses.asdict(check) | {"ratio": check.ratio} for check in self.checks],
            "predictions": [dataclasses.asdict(row) for row in self.rows],
            "measured": self.found,
            "provenance": self.provenance,
        }

    def as_csv(self) -> str:
        """A line for each world, span and algorithm."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(
            [
                "gpus", "span", "ranks", "algorithm", "step_ms", "step_ms_low", "step_ms_high", "overhead_percent",
                "overhead_percent_low", "overhead_percent_high", "statistics_ms", "exposed_gradients_ms",
            ]
        )  # fmt: skip
        for row in self.rows:
            numbers = [1000 * value for value in dataclasses.astuple(row.seconds)]
            numbers += [100 * value for value in dataclasses.astuple(row.overhead)]
            numbers += [1000 * row.statistics, 1000 * row.gradients]
            out.writerow([row.gpus, row.span, row.ranks, row.algorithm, *(f"{n:.6g}" for n in numbers)])
        return text.getvalue()


def write(result: Result, folder: Path) -> list[Path]:
    """The figure, the page, the table and all that was measured, into a folder that is there."""
    from .figure import draw
    from .table import page

    png, svg = draw(result)
    files = {
        "figure.png": png,
        "figure.svg": svg,
        "scale.md": page(result).encode(),
        "scale.csv": result.as_csv().encode(),
        "scale.json": json.dumps(result.as_json(), indent=1, allow_nan=False).encode() + b"\n",
    }
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
