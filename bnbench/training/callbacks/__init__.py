"""One concern a file."""

from .bundle import bundle
from .curve import TrainingCurve
from .history import Epoch, History
from .statistics import RunningStatistics

__all__ = ["Epoch", "History", "RunningStatistics", "TrainingCurve", "bundle"]
