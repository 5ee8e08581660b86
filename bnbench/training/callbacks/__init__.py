"""One concern a file."""

from .curve import TrainingCurve
from .history import Epoch, History
from .statistics import RunningStatistics

__all__ = ["Epoch", "History", "RunningStatistics", "TrainingCurve"]
