"""What came of a run, as those see it who did not train it. No torch."""

from __future__ import annotations

import dataclasses
import logging

from bnbench.config import RunConfig
from bnbench.provenance import provenance
from bnbench.records import Record, digest, write_record

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run: `status` of its record, or "refused" (a user's mistake; no record)."""

    config: RunConfig
    status: str
    error: str | None = None


def write_failure(config: RunConfig, status: str, error: str) -> None:
    """The record of a run whose ranks could not write it. Where it cannot be written either, a warning."""
    identity = config.identity()
    record = Record(
        schema=1,
        id=digest(identity),
        name=config.run_name,
        identity=identity,
        status=status,  # type: ignore[arg-type]
        config=dataclasses.asdict(config),
        metrics={},
        timings={},
        provenance=provenance(),
        error=error,
    )
    try:
        write_record(config.folder, record)
    except OSError as problem:
        log.warning("no record of %s: %s", config.run_name, problem.strerror or problem)
