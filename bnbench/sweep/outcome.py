"""What came of a run, as those see it who did not train it. No torch."""

from __future__ import annotations

import dataclasses
import logging
import time

from bnbench.config import RunConfig
from bnbench.lock import RunLock
from bnbench.provenance import provenance
from bnbench.records import finished_status, write_record

LETTING_GO_SECONDS = 2.0  # a rank that was killed has its lock until the processes that stream its images end
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run: `status` of its record, "refused" (a user's mistake; no record), or "elsewhere" (another
    process trains it)."""

    config: RunConfig
    status: str
    error: str | None = None
    earlier: bool = False  # it broke in an earlier start of this SLURM job, and this one has left it as it is


def write_failure(config: RunConfig, status: str, error: str, *, locked: bool = False) -> Outcome:
    """Write the record of a run whose ranks could not, unless it is finished by now or another process has it.

    `locked`: a rank of the caller's own world still has the run's lock. Where no record can be written, a warning.
    """
    lock = RunLock(config.folder)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
        if not locked and not _took(lock):
            return Outcome(config, "elsewhere")
        finished = finished_status(config.folder)
        if finished is not None:
            return Outcome(config, finished)
        record = config.record(status, metrics={}, timings={}, provenance=provenance(), error=error)  # type: ignore[arg-type]
        write_record(config.folder, record)
    except (OSError, ValueError) as problem:
        log.warning("no record of %s: %s", config.run_name, getattr(problem, "strerror", None) or problem)
    finally:
        lock.release()
    return Outcome(config, status, error)


def _took(lock: RunLock) -> bool:
    until = time.monotonic() + LETTING_GO_SECONDS
    while not (taken := lock.take()) and time.monotonic() < until:
        time.sleep(0.05)
    return taken
