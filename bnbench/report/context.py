"""What the page says that is made of records rather than of the answer: ready words and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnbench.analysis.claims import ClaimResult


@dataclass(frozen=True)
class RunRow:
    """A run: `val_error` in percent, None unless it completed; `message`: what a run said that did not.

    `record` is the path of its record.json relative to the page's folder; `wandb` its address there.
    """

    name: str
    status: str
    record: str
    val_error: float | None = None
    message: str | None = None
    wandb: str | None = None


@dataclass(frozen=True)
class HealthRow:
    """A cell's health, medians over its completed runs and, for a signal with a value at each norm, over norms.

    `running`, `precise`, `batch`: validation error in percent of the final network under these statistics.
    `drift_mean`, `drift_var`, `rank_spread`, `eval_gap`: the signals of health.csv (`training/callbacks/health.py`).
    """

    cell: str  # CellView.key
    running: float | None = None
    precise: float | None = None
    batch: float | None = None
    drift_mean: float | None = None
    drift_var: float | None = None
    rank_spread: float | None = None
    eval_gap: float | None = None


@dataclass(frozen=True)
class PageContext:
    """`command` makes the page again; `about` says what was measured and where, in a line. `fairness` and `tuning` are
    Markdown, with or without a heading of their own.

    `provenance` and `settings` (the same in all cells) are keys with their values; `problems` lines about records that
    were not used or are incomplete; `labels` what has to be said beside these numbers because of their data.
    `files`: what lies beside the page, by its name, with its relative link; `runs.csv` and `cells.csv` are pointed
    to where a table is cut.
    """

    command: str
    claims: Sequence[ClaimResult] = ()
    fairness: str = ""
    tuning: str = ""
    health: Sequence[HealthRow] = ()
    settings: Sequence[tuple[str, str]] = ()
    provenance: Sequence[tuple[str, str]] = ()
    runs: Sequence[RunRow] = ()
    problems: Sequence[str] = ()
    labels: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
