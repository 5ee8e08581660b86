"""One concern a file."""

from .bundle import bundle
from .curve import TrainingCurve
from .history import Epoch, History
from .statistics import FreezeStatistics, MergeEveryStep, RunningStatistics

__all__ = [
    "Epoch",
    "FreezeStatistics",
    "History",
    "MergeEveryStep",
    "RunningStatistics",
    "TrainingCurve",
    "bundle",
]
