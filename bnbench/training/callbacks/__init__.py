"""One concern a file."""

from .bundle import bundle
from .curve import TrainingCurve
from .health import Health
from .history import Evaluation, History
from .landscape import Landscape
from .series import Series
from .statistics import FreezeStatistics, MergeEveryStep, Precise, RunningStatistics, precise_over

__all__ = [
    "Evaluation",
    "FreezeStatistics",
    "Health",
    "History",
    "Landscape",
    "MergeEveryStep",
    "Precise",
    "RunningStatistics",
    "Series",
    "TrainingCurve",
    "bundle",
    "precise_over",
]
