"""Training that waits for data, in one line for the end of a run and for the report. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from bnbench.records import Record

MOST_WAITING = 0.1  # of the training time, below which it is nobody's business


def data_wait_remark(records: Iterable[Record]) -> str | None:
    """What the run that waits most calls for; None where no run waits for more than a tenth of its training."""
    found = list(records)
    above = [record for record in found if _share(record) > MOST_WAITING]
    if not above:
        return None
    worst = max(above, key=_share)
    share = f"{_share(worst):.0%} of a step"
    runs = (
        ""
        if len(found) == 1
        else f" in {worst.name} ({len(above)} of {len(found)} runs above {MOST_WAITING:.0%})"
    )
    workers = worst.config.get("data", {}).get("workers")
    if workers is None:
        return f"making the batches takes {share}{runs}: step times and rates are in part the data's"
    return (
        f"the loader cannot feed the model: {share} waits for data{runs}; raise data.workers (now {workers}), or "
        "read smaller files from a faster disk"
    )


def _share(record: Record) -> float:
    return float(record.timings.get("data_wait_share") or 0.0)
