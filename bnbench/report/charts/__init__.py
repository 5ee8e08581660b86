"""The charts of the page, as Plotly figures in plain dicts: made of the answer, drawn by the page's script."""

from .base import Chart, Entry
from .costs import step_parts, step_times
from .crossings import crossing_ends
from .curves import learning_curves
from .error import error_against_nbs
from .health import error_by_statistics
from .times import time_to_target
from .tradeoff import pareto

__all__ = [
    "Chart",
    "Entry",
    "crossing_ends",
    "error_against_nbs",
    "error_by_statistics",
    "learning_curves",
    "pareto",
    "step_parts",
    "step_times",
    "time_to_target",
]
