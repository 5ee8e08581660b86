"""What a page says, as numbers and words without a layout: made once, and read by every renderer.

Validation errors are in percent, differences in points of it, times in milliseconds a step unless a name says
otherwise, memory in bytes. None where the records do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# `better` and `worse` are those of the left side; "lost": one side's runs did not come to an error.
Outcome = Literal["better", "worse", "not distinguishable", "too few pairs", "lost"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval over `n` seeds; no interval where n is below 2."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class CellView:
    """A cell as it is drawn and listed: the runs that differ only by seed.

    `line` names the norm and those of its settings that vary in this sweep (`gn`, `brn r_max 3`); `span` is how its
    NBS is reached (ghost, device, group, world; None without NBS). `errors`: one per completed seed.
    `statuses` counts all its runs. Over its completed runs `step_ms` is the mean, `images_per_s` and `peak_bytes` are
    medians.
    """

    key: str
    panel: str
    line: str
    norm: str
    nbs: int | None
    span: str | None
    settings: Mapping[str, str]
    error: Interval | None
    errors: tuple[float, ...]
    statuses: Mapping[str, int]
    images_per_s: float | None = None
    step_ms: float | None = None
    peak_bytes: float | None = None
    gpu_hours: float | None = None  # of all its runs: seconds of fitting x world size
    on_front: bool = False  # no cell of its panel is at least as good in error, step time and memory
    ranged: bool = False  # learning-rate range tests: they measure no error

    @property
    def finished(self) -> int:
        """Its runs that completed or diverged."""
        return self.statuses.get("completed", 0) + self.statuses.get("diverged", 0)

    @property
    def stable(self) -> float:
        """The share of its runs that completed, rather than diverged, ran out of memory or failed."""
        return self.statuses.get("completed", 0) / sum(self.statuses.values())


@dataclass(frozen=True)
class Contrast:
    """Two cells compared by runs paired by seed: left - right, in points of validation error.

    `family` names the comparisons that are corrected together (Holm), `p_holm` is that; `effect` is Cohen's d_z,
    `improvement` the probability that a run of the left has the lower error (ties half).
    `seeds_needed`: pairs that would resolve a difference of `Answer.resolve` points at this spread, uncorrected.
    The interval of `difference` is Student's; `bootstrap_low` and `_high` are those of a bootstrap over the seeds
    (BCa), from ten pairs on. `sides`: the cells whose differences it is the mean of, by key; of one panel, one pair.
    """

    panel: str
    family: str
    left: str  # CellView.key
    right: str
    left_label: str  # `gn`, `bn at NBS 2`
    right_label: str
    nbs: int | None  # where it lies on the axis: the right cell's NBS, else the left's
    pairs: int
    outcome: Outcome
    difference: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    improvement: float | None = None
    seeds_needed: int | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    note: str = ""
    sides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Crossover:
    """The NBS at which two lines of a panel meet; low and high: the nearest NBS at which they were told apart.

    `low` None: no verdict down to `first`, the smallest NBS at which the two were compared; `high` None: none up to
    `last`, the largest.
    """

    panel: str
    left: str  # lines
    right: str
    nbs: float
    low: float | None
    high: float | None
    first: int
    last: int


@dataclass(frozen=True)
class Panel:
    """Cells that may be compared: one model, data and batch setting. `sentences`: its verdict in words."""

    key: str
    title: str
    cells: tuple[CellView, ...]
    contrasts: tuple[Contrast, ...] = ()
    crossovers: tuple[Crossover, ...] = ()
    sentences: tuple[str, ...] = ()

    @property
    def ranged(self) -> bool:
        """Whether it holds learning-rate range tests, and so nothing to compare."""
        return bool(self.cells) and all(cell.ranged for cell in self.cells)


@dataclass(frozen=True)
class Curve:
    """Validation over training, mean over a cell's completed seeds, with the 95% interval where there is one."""

    cell: str
    step: tuple[int, ...]
    epoch: tuple[float, ...]
    seconds: tuple[float, ...]  # of training, mean over seeds
    error: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class TimeToTarget:
    """Seconds of training until an evaluation was at or below the target; `reached` of `runs` seeds came there."""

    cell: str
    target: float
    reached: int
    runs: int
    seconds: Interval | None
    device_hours: float | None


@dataclass(frozen=True)
class NormCost:
    """What a norm adds to a step: `added_ms` = step_ms - that of the same network without norms (`control_ms`).

    `share`: added_ms / step_ms. `collectives` and `bytes`: a step's, of the norm alone, per rank. `parts`: step time by
    part (data_wait, forward, backward, communication, optimizer), where a run measured them.
    """

    cell: str
    step_ms: Interval
    control_ms: float | None
    added_ms: float | None
    share: float | None
    collectives: float | None
    bytes: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    mfu: float | None = None


@dataclass(frozen=True)
class Published:
    """A published number beside ours, where a cell's protocol matches its source's in what `matches` names."""

    source: str
    url: str
    evidence: str  # primary text, secondary, read in code
    what: str  # `ResNet-50, ImageNet, BN at NBS 2: validation error %`
    value: float
    ours: Interval | None
    matches: str
    differs: str


@dataclass(frozen=True)
class SideBySide:
    """A cell that two folders hold, as another machine or commit ran it: right - left by runs paired by seed.

    `speed` is step time right / left, by geometric means. `outcome` of the right: "better" or "worse" (a regression)
    where it is beyond noise after Holm's correction over all such cells, else "not distinguishable", "identical", "one
    pair" or "not measured". Where a seed diverged in one of the folders there is no difference: "more diverged" or
    "fewer diverged" counts and tests nothing, and `note` has the counts.
    """

    cell: str
    left: str  # folders
    right: str
    pairs: int
    difference: Interval | None
    p_holm: float | None
    outcome: str
    speed: Interval | None
    speed_p_holm: float | None
    speed_outcome: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """Everything on the page but the claims, the fairness and the provenance, which are made of records.

    `overall`: comparisons over panels that differ in model and data alone, as panels without cells.
    """

    title: str
    panels: tuple[Panel, ...]
    curves: tuple[Curve, ...] = ()
    times: tuple[TimeToTarget, ...] = ()
    costs: tuple[NormCost, ...] = ()
    published: tuple[Published, ...] = ()
    sides: tuple[SideBySide, ...] = ()
    baseline: str = "bn"
    family: str = "line"  # what is corrected together: the comparisons of a line, a panel, or the page
    resolve: float = 1.0  # points of error that `seeds_needed` is about
    overall: tuple[Panel, ...] = ()

    @property
    def judged(self) -> tuple[Panel, ...]:
        """All that has comparisons and a verdict, what is over several panels first."""
        return (*self.overall, *self.panels)

    @property
    def cells(self) -> dict[str, CellView]:
        return {cell.key: cell for panel in self.panels for cell in panel.cells}
