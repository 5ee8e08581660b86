"""What is said of batch normalization, put to the test by paired runs: records in, verdicts out. No torch."""

from .judge import ClaimResult, judge
from .verdict import VERDICTS, Verdict

__all__ = ["VERDICTS", "ClaimResult", "Verdict", "judge"]
