"""What is said of batch normalization, put to the test by paired runs: records in, verdicts out. No torch."""

from .judge import ClaimResult, judge
from .verdict import VERDICTS, Verdict, holm

__all__ = ["VERDICTS", "ClaimResult", "Verdict", "holm", "judge"]
