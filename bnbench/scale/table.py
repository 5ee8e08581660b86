"""The tables for a terminal and for a page: links, predicted beside measured, the worlds to come. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cost_model import KINDS
from .measured import CONFIDENCE, RESAMPLES, Spread
from .prediction import Cluster, Row
from .result import Result

NOTHING = "–"
CHECKED_NAMES = {"bn": "BN on each", "sync": "SyncBN over all", "overhead": "its overhead"}


@dataclass(frozen=True)
class Table:
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(result: Result) -> list[Table]:
    found = [predicted_worlds(result)]
    if result.measured is not None and result.found["ranks"] > 1:
        found = [measured_links(result), compared(result), *found]
    return found


def measured_links(result: Result) -> Table:
    """Each kind of collective on each world at hand: a small message, and the line through all sizes."""
    assert result.measured is not None
    rows = []
    for world in result.measured.worlds:
        links = result.measured.all_rounds.links_at(world)
        for kind in KINDS:
            timings = result.measured.all_rounds.timings(world, kind)
            off = sorted(result.measured.misfits(world, kind))
            link = links[kind]
            rows.append(
                [
                    str(world.ranks),
                    kind,
                    f"{1e6 * timings[0].seconds:,.0f}",
                    f"{1e6 * link.alpha:,.0f}",
                    f"{link.beta / 1e9:.3g}",
                    f"{100 * off[len(off) // 2]:.0f}, {100 * off[-1]:.0f}",
                ]
            )
    headings = ["ranks", "collective", "1 KB, us", "alpha, us (ring)", "beta, GB/s", "off by %: median, most"]
    return Table("Messages of 1 KB to 64 MB among the ranks at hand", headings, rows)


def compared(result: Result) -> Table:
    rows = []
    for check in result.checks:
        rows.append(
            [
                str(check.ranks),
                CHECKED_NAMES[check.what],
                _ms(check.predicted),
                _ms(check.measured),
                f"{check.ratio:.2f}",
            ]
        )
    headings = ["ranks", "", "predicted, ms a step", "measured, ms a step", "predicted / measured"]
    return Table("Steps on the ranks at hand, predicted without looking at them", headings, rows)


def predicted_worlds(result: Result) -> Table:
    """Milliseconds of a step, and how much more it is than with BN on each device."""
    cluster = result.cluster
    by_key: dict[tuple[int, str, str], Row] = {(r.gpus, r.span, r.algorithm): r for r in result.rows}
    headings = [result.unit, "BN on each", f"node of {cluster.node}", f"group of {cluster.group}"]
    headings += ["world, ring", "world, tree"]
    rows = []
    for gpus in sorted({row.gpus for row in result.rows}):
        cells = [
            by_key[gpus, span, algorithm]
            for span, algorithm in (("node", "ring"), ("group", "ring"), ("world", "ring"), ("world", "tree"))
        ]
        alone = by_key[gpus, "device", "ring"].seconds.value
        rows.append([f"{gpus:,}", _number(1000 * alone), *(_cell(row, cluster) for row in cells)])
    return Table(
        "SyncBN's step, ms, and its overhead over BN on each device, by what it spans", headings, rows
    )


def _cell(row: Row, cluster: Cluster) -> str:
    """Nothing where the world is no larger than the span: the world's own column says it."""
    if row.gpus == 1 or (
        row.span != "world" and row.gpus < {"node": cluster.node, "group": cluster.group}[row.span]
    ):
        return NOTHING
    low, high = 100 * row.overhead.low, 100 * row.overhead.high
    band = "" if low == high else f" [{_percent(low)}, {_percent(high)}]"
    return f"{_number(1000 * row.seconds.value)}, +{_percent(100 * row.overhead.value)}%{band}"


def notes(result: Result) -> Iterator[str]:
    """What the numbers rest on."""
    config, compute, found = result.config, result.compute, result.found
    layers, sent = len(found["channels"]), found["gradient_bytes"]
    yield (
        f"{config.model.label}: {layers} layers of BN, so {2 * layers} collectives a step; gradients of "
        f"{sent / 1e6:.3g} MB; {config.per_device_batch} images a device however many there are"
    )
    if result.measured is None:
        yield f"a step by itself: {1000 * compute.step:.4g} ms as given; SyncBN's own arithmetic counts as nothing"
    else:
        yield (
            f"a step by itself: {_number(1000 * compute.step)} ms on {found['device_name']}, {found['ranks']} rank(s) "
            f"at work; SyncBN's own arithmetic: {_number(1000 * compute.extra)} ms more"
        )
        cores = result.provenance["host"]["cores"]
        if compute.overlaps is False and found["node"] * found["threads"] > cores:
            yield f"{found['node']} ranks share {cores} core(s): a device is what one of them has of these"
    yield from _joined(result)
    yield (
        "gradients travel while the backward pass computes, in buckets of 25 MB: what is left of them is counted"
        if compute.overlaps
        else "gradients travel after the backward pass: the cores that send are those that compute"
    )
    if result.measured is not None:
        yield (
            f"[ ]: {100 * CONFIDENCE:.0f}% of {RESAMPLES} draws of the {result.measured.rounds} rounds; what the model "
            "leaves out is not in it"
        )
    yield "left out: congestion, ranks that are late, and what else is on the same links; BN on each, node, group: ring"


def _joined(result: Result) -> Iterator[str]:
    cluster, measured = result.cluster, result.measured
    if cluster.between is not None:
        where = "between nodes" if cluster.within is None else "within and between nodes"
        yield f"links {where}: as named, not measured"
    elif measured is not None and result.found["ranks"] <= result.found["node"]:
        yield "one node at hand: others are taken to be joined as its ranks are, which flatters them"


def page(result: Result) -> str:
    """Markdown: the command, the tables, the figure, what they rest on, and what made them."""
    parts = [f"# SyncBN at scale: {result.config.model.label}\n", f"```\n{result.command}\n```\n"]
    parts.append("![step time and overhead against GPUs](figure.png)\n")
    for table in tables(result):
        parts.append(f"## {table.title}\n")
        lines = [list(table.headings), ["---:"] * len(table.headings), *map(list, table.rows)]
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    parts.append("".join(f"- {note}\n" for note in notes(result)))
    came_from = result.provenance
    git, host, versions = came_from["git"], came_from["host"], came_from["versions"]
    commit = (git["commit"] or "unknown")[:7] + (" with changes" if git["dirty"] else "")
    made = f"torch {versions.get('torch')}, {host['cpu']} with {host['cores']} cores, {came_from['written'][:10]}"
    load = " and ".join(f"{value:g}" for value in result.found.get("load_before_and_after", []))
    load = f", load average before and after: {load}" if load else ""
    parts.append(f"Commit `{commit}`, {made}{load}.\n")
    return "\n".join(parts)


def show(result: Result) -> None:
    """Print it. A file or a pipe gets as wide a table as it takes, 80 at least."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for table in tables(result):
        console.print(f"{table.title}\n")
        rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name in table.headings:
            rich.add_column(name, justify="right", overflow="fold")
        for row in table.rows:
            rich.add_row(*row)
        if not console.is_terminal:
            needed = rich.__rich_measure__(console, console.options.update(max_width=10_000)).maximum
            console.width = max(80, needed)
        console.print(rich, soft_wrap=False)
        console.print()
    for note in notes(result):
        console.print(note)


def _ms(spread: Spread) -> str:
    return f"{_number(1000 * spread.value)} [{_number(1000 * spread.low)}, {_number(1000 * spread.high)}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
