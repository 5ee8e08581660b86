"""One concern a file."""

from .bundle import bundle
from .checkpoint import Checkpoint, PreemptedError, Stateful, is_stateful
from .curve import TrainingCurve, Window
from .health import Health
from .history import Evaluation, History
from .landscape import Landscape
from .series import Series
from .speed import Speed
from .statistics import FreezeStatistics, MergeEveryStep, Precise, RunningStatistics, precise_over

__all__ = [
    "Checkpoint",
    "Evaluation",
    "FreezeStatistics",
    "Health",
    "History",
    "Landscape",
    "MergeEveryStep",
    "Precise",
    "PreemptedError",
    "RunningStatistics",
    "Series",
    "Speed",
    "Stateful",
    "TrainingCurve",
    "Window",
    "bundle",
    "is_stateful",
    "precise_over",
]
