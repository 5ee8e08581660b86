"""A preview for a terminal: the cells with their time, what is invalid, and the command that would run it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnbench.compose import Job
from bnbench.sweep.disk import Disk
from bnbench.sweep.estimate import NEWEST, PROBED
from bnbench.sweep.preview import PlannedCell, Preview

NOTHING = "–"
HEADINGS = ("cell", "NBS over", "seeds", "finished", "to do", "a run", "in all", "GPU-hours", "memory a rank")
RIGHT = HEADINGS[2:]
FROM = "estimated from"


def show(preview: Preview) -> None:
    """Print it. A file or a pipe gets as wide a table as it takes, 80 at least."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, soft_wrap=True)
    if preview.plan.runs:
        for line in (preview.plan.headline(), *preview.fairness, *preview.remarks, ""):
            console.print(line)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        left_out = set() if preview.gpu_hours is not None else {"GPU-hours"}
        columns = [place for place, name in enumerate((*HEADINGS, FROM)) if name not in left_out]
        for name in [(*HEADINGS, FROM)[place] for place in columns]:
            table.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
        for cell in preview.cells:
            told = row(cell)
            table.add_row(*(told[place] for place in columns))
        if not console.is_terminal:
            needed = table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum
            console.width = max(80, needed)
        console.print(table, soft_wrap=False)
        console.print()
    for line in (*closing(preview), *invalid(preview), *command(preview)):
        console.print(line)


def row(cell: PlannedCell) -> list[str]:
    known = cell.estimate
    first = cell.runs[0]
    return [
        cell.name,
        NOTHING if first.nbs is None else first.span.kind,
        ranges([run.seed for run in cell.runs]),
        str(len(cell.finished)),
        str(len(cell.todo)),
        NOTHING if known is None else duration(known.seconds),
        NOTHING if cell.seconds is None else duration(cell.seconds),
        NOTHING if cell.gpu_hours is None else f"{cell.gpu_hours:.3g}",
        NOTHING if known is None or known.peak_bytes is None else size(known.peak_bytes),
        cell.problem or (NOTHING if known is None else known.source),
    ]


def closing(preview: Preview) -> Iterator[str]:
    """The total, what it rests on, and where the curves go."""
    if not preview.plan.runs:
        return
    todo, unknown = len(preview.plan.todo), preview.without_estimate
    total = f"to do: {todo} of {len(preview.plan.runs)} run(s)"
    if preview.seconds is not None and todo:
        hours = "" if preview.gpu_hours is None else f", {preview.gpu_hours:.3g} GPU-hours"
        least = "at least " if unknown else ""
        total += f", one after another {least}{duration(preview.seconds)}{hours}"
        total += f", without {unknown} run(s) that have no estimate" if unknown else ""
    elif todo:
        where = ", ".join(map(str, preview.earlier.folders))
        total += f"; none of the {len(preview.earlier.records)} record(s) below {where} tells how long"
        total += (
            " (--probe trains a few steps of each cell)" if not any(c.problem for c in preview.cells) else ""
        )
    yield total
    if todo:
        yield from _evidence(preview)
    if (disk := preview.disk) is not None:
        yield _disk(disk)
    if (track := preview.tracking) is not None:
        project = "" if track.project is None else f", project {track.project}"
        given = "" if track.environment is None else f" (WANDB_MODE={track.environment})"
        yield f"W&B: {track.mode}{project}{given}"


def _evidence(preview: Preview) -> Iterator[str]:
    earlier = preview.earlier
    where = ", ".join(map(str, earlier.folders))
    sources = [cell.estimate.source for cell in preview.cells if cell.estimate is not None]
    probed = sources.count(PROBED)
    said = [f"probes of {probed} cell(s), extended to whole runs"] if probed else []
    if len(sources) > probed:
        said.append(
            f"medians of the newest {NEWEST} at most of {len(earlier.records)} record(s) below {where}, of setup, "
            "training and measures"
        )
    if said:
        yield f"times: {'; '.join(said)}; on {preview.device}"
    if earlier.unreadable:
        yield f"{earlier.unreadable} record(s) below {where} cannot be read; bnbench report names them"


def _disk(disk: Disk) -> str:
    free = f"{size(disk.free)} are free"
    if not disk.kept:
        return f"disk: unknown before a run or a probe has counted parameters; {free}"
    least, short = "at least " if disk.unknown else "", ": too little" if disk.is_short else ""
    return (
        f"disk: {least}{size(disk.needed)}, of them {size(disk.checkpoints)} for checkpoints while a run is trained; "
        f"{free}{short}"
    )


def invalid(preview: Preview) -> Iterator[str]:
    """Every combination that is none, under its reason, by the words that not all combinations share."""
    if not preview.invalid:
        return
    yield f"\n{len(preview.invalid)} of {len(preview.jobs)} combinations are invalid:"
    shared = set.intersection(*(set(job.words) for job in preview.jobs))
    reasons: dict[str, list[Job]] = {}
    for job in preview.invalid:
        reasons.setdefault(job.problem or "", []).append(job)
    for reason, jobs in reasons.items():
        yield f"  {reason}"
        for job in jobs:
            yield f"    {' '.join(word for word in job.words if word not in shared)}"


def command(preview: Preview) -> Iterator[str]:
    if preview.invalid:
        yield "bnbench train refuses the whole sweep until these are mended or left out"
    elif preview.refusal is not None:
        yield f"\nbnbench train refuses it: {preview.refusal}"
    else:
        yield f"\n{preview.command}"


def duration(seconds: float) -> str:
    """Two units at most: `4.2 s`, `5 min 19 s`, `3 h 7 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in three digits: `512 MB`, `1.37 GB`."""
    value, unit = count / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1e3, larger
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in few words: `0-4, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = []
    for first, last in runs:
        parts.append(str(first) if first == last else f"{first}{',' if last == first + 1 else '-'}{last}")
    return ",".join(parts)
