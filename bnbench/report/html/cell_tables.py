"""The tables of cells and of what is compared: every number that a chart draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnbench.analysis.answer import (
    Answer,
    CellView,
    Contrast,
    Crossover,
    Curve,
    Interval,
    NormCost,
    Panel,
    Published,
    SideBySide,
    TimeToTarget,
)
from bnbench.report.charts import Entry, crossing_ends
from bnbench.report.context import HealthRow, PageContext
from bnbench.report.numbers import (
    decimals,
    difference,
    duration,
    memory,
    missed,
    nbs_words,
    plus_minus,
    probability,
    ratio,
    share,
)
from bnbench.report.style import Look
from bnbench.report.table import NOTHING

from .tables import Column, Table, Value, local, mean, measurement, percent, quantity, table, web, whole

WHERE = "panel"
BEYOND = 1e9  # by which an end above the largest NBS sorts
TONES = {"better": "good", "worse": "bad", "lost": "bad"}


@dataclass
class CellTables:
    """A table without rows is not shown."""

    answer: Answer
    context: PageContext
    looks: Mapping[str, Look]

    def __post_init__(self) -> None:
        self.known = self.answer.cells
        panels = self.answer.judged
        self.names = dict(
            zip([panel.key for panel in panels], told_apart([panel.title for panel in panels]), strict=True)
        )

    def cells(self) -> Table:
        found = list(self.answer.cells.values())
        places = decimals(cell.error for cell in found)
        lost = any(cell.stable < 1 for cell in found)

        def row(cell: CellView) -> list[Value]:
            return [
                *self._cell(cell),
                mean(plus_minus(cell.error, places), cell.error),
                whole(cell.error.n if cell.error else None if cell.ranged else 0),
                Value(missed(cell), tone="bad"),
                Value(share(cell.stable) if lost else "", cell.stable),
                measurement(cell.images_per_s),
                measurement(cell.step_ms),
                Value(memory(cell.peak_bytes), cell.peak_bytes),
                measurement(cell.gpu_hours),
                Value("yes" if cell.on_front else "", tone="good"),
            ]

        columns = [*_columns("NBS", "error %", "seeds"), Column("lost"), Column("stability", True)]
        columns += [Column(name, True) for name in ("images/s", "step ms", "peak memory", "device-hours")]
        columns.append(Column("on the front"))
        return table("cell-list", "Cells", columns, found, row, self._file("cells.csv"))

    def contrasts(self) -> Table:
        found = [each for panel in self.answer.judged for each in panel.contrasts]
        places = decimals(each.difference for each in found)
        several = len({each.family for each in found}) > len(self.names)

        def row(each: Contrast) -> list[Value]:
            return [
                Value(f"{each.left_label} against {each.right_label}"),
                Value(each.outcome, tone=TONES.get(each.outcome, "quiet")),
                mean(difference(each.difference, places), each.difference),
                self._where(each.panel),
                Value(each.family if several else ""),
                *_tested(each),
            ]

        # What a phone shows without scrolling comes first.
        columns = [Column("comparison"), Column("outcome"), Column("difference, points", True)]
        columns += [Column(WHERE), Column("family"), Column("NBS", True)]
        columns += [
            Column(name, True)
            for name in (
                "p (Holm)",
                "pairs",
                "d_z",
                "P(left lower)",
                f"pairs to resolve {self.answer.resolve:g}",
            )
        ]
        columns.append(Column("note"))
        return table("contrasts", "Paired comparisons", columns, found, row, self._file("comparisons.csv"))

    def crossovers(self) -> Table:
        found = [(panel, each) for panel in self.answer.panels for each in panel.crossovers]

        def row(pair: tuple[Panel, Crossover]) -> list[Value]:
            panel, each = pair
            low, high = crossing_ends(each)
            return [
                Value(f"{each.left} and {each.right}"),
                self._where(panel.key),
                quantity(each.nbs),
                Value(low, each.low if each.low is not None else 0.0),
                Value(high, each.high if each.high is not None else BEYOND),
            ]

        columns = [Column("norms"), Column(WHERE)]
        columns += [Column(name, True) for name in ("meet at NBS", "told apart at", "and at")]
        return table("crossovers", "Crossovers", columns, found, row)

    def times(self) -> Table:
        def row(each: TimeToTarget) -> list[Value]:
            return [
                *self._cell(self.known[each.cell]),
                quantity(each.target),
                Value(f"{each.reached} of {each.runs}", each.reached / each.runs if each.runs else None),
                mean(duration(each.seconds), each.seconds),
                measurement(each.device_hours),
            ]

        columns = _columns("NBS", "target %", "reached", "training time", "device-hours")
        found = [each for each in self.answer.times if each.cell in self.known]
        return table("times", "Time to a target error", columns, found, row)

    def curves(self) -> Table:
        def row(curve: Curve) -> list[Value]:
            return [
                *self._cell(self.known[curve.cell]),
                whole(len(curve.error)),
                *(percent(curve.error[at]) for at in (0, (len(curve.error) - 1) // 2, -1)),
                Value(duration(Interval(curve.seconds[-1], None, None, 1)), curve.seconds[-1]),
            ]

        names = ("NBS", "evaluations", "first error %", "halfway %", "last error %", "training time")
        found = [each for each in self.answer.curves if each.error and each.cell in self.known]
        return table("curve-ends", "Learning curves in numbers", _columns(*names), found, row)

    def costs(self) -> Table:
        found = [each for each in self.answer.costs if each.cell in self.known]
        parts = list(dict.fromkeys(part for each in found for part in each.parts))

        def row(each: NormCost) -> list[Value]:
            return [
                *self._cell(self.known[each.cell]),
                Value(plus_minus(each.step_ms, 2 if each.step_ms.mean < 10 else 1), each.step_ms.mean),
                measurement(each.control_ms),
                measurement(each.added_ms),
                Value(share(each.share), each.share),
                quantity(each.collectives),
                Value(memory(each.bytes), each.bytes),
                Value(share(each.mfu), each.mfu),
                *(measurement(each.parts.get(part)) for part in parts),
            ]

        names = ["NBS", "step ms", "without norms ms", "added ms", "share", "collectives", "bytes", "MFU"]
        names += [f"{part.replace('_', ' ')} ms" for part in parts]
        return table("costs", "Step time and what the norm adds", _columns(*names), found, row)

    def health(self) -> Table:
        def row(each: HealthRow) -> list[Value]:
            return [
                *self._cell(self.known[each.cell]),
                *map(percent, (each.running, each.precise, each.batch)),
                *map(measurement, (each.drift_mean, each.drift_var, each.rank_spread, each.eval_gap)),
            ]

        names = ("NBS", "running %", "precise %", "batch %", "drift of mean", "drift of variance")
        columns = _columns(*names, "spread over ranks", "eval gap")
        found = [each for each in self.context.health if each.cell in self.known]
        return table("health-signals", "Health signals", columns, found, row)

    def published(self) -> Table:
        def row(each: Published) -> list[Value]:
            return [
                Value(each.what),
                quantity(each.value),
                mean(plus_minus(each.ours, decimals([each.ours])), each.ours),
                Value(each.source, href=web(each.url)),
                Value(each.evidence),
                Value(each.matches),
                Value(each.differs),
            ]

        columns = [Column("what"), Column("published", True), Column("ours", True)]
        columns += map(Column, ("source", "evidence", "matches", "differs"))
        return table("published-numbers", "Published numbers", columns, self.answer.published, row)

    def sides(self) -> Table:
        def row(each: SideBySide) -> list[Value]:
            cell = self.known[each.cell]
            speed = each.speed_outcome.replace("better", "faster").replace("worse", "slower")
            return [
                *self._cell(cell),
                Value(each.left),
                Value(each.right),
                mean(difference(each.difference, 2), each.difference),
                Value(each.outcome, tone=TONES.get(each.outcome, "quiet")),
                Value(probability(each.p_holm), each.p_holm),
                whole(each.pairs),
                mean(ratio(each.speed), each.speed),
                Value(speed, tone=TONES.get(each.speed_outcome, "quiet")),
                Value(each.note),
            ]

        columns = [*_columns("NBS"), Column("left"), Column("right"), Column("error, right - left", True)]
        columns += [Column("error of the right"), Column("p (Holm)", True), Column("pairs", True)]
        columns += [Column("step time, right / left", True), Column("step of the right"), Column("note")]
        return table("side-list", "Side by side", columns, self.answer.sides, row)

    def _cell(self, cell: CellView) -> list[Value]:
        """Norm, panel and NBS: what each table of cells begins with."""
        look = self.looks[cell.line]
        level = cell.nbs is None
        entry = Entry("", look.colour, None if level else look.symbol, look.dash if level else "solid")
        return [Value(cell.line, swatch=entry), self._where(cell.panel), Value(nbs_words(cell), cell.nbs)]

    def _where(self, panel: str) -> Value:
        return Value(self.names[panel])

    def _file(self, name: str) -> str | None:
        path = self.context.files.get(name)
        return None if path is None else local(path)


def told_apart(titles: Sequence[str]) -> list[str]:
    """Titles without the words that all begin or end with; "" for the only one."""
    words = [title.split() for title in titles]
    if len(words) < 2:
        return [""] * len(words)
    first = _alike(words)
    last = _alike([each[first:][::-1] for each in words])
    return [
        " ".join(each[first : len(each) - last]).strip(",;") or title
        for each, title in zip(words, titles, strict=True)
    ]


def _alike(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with."""
    return next(
        (at for at, each in enumerate(zip(*words, strict=False)) if len(set(each)) > 1), min(map(len, words))
    )


def _tested(each: Contrast) -> list[Value]:
    """Where a comparison lies, and what its outcome rests on."""
    return [
        whole(each.nbs),
        Value(probability(each.p_holm), each.p_holm),
        whole(each.pairs),
        Value(NOTHING if each.effect is None else f"{each.effect:.1f}", each.effect),
        Value(share(each.improvement), each.improvement),
        whole(each.seeds_needed),
        Value(each.note),
    ]


def _columns(*numbers: str) -> list[Column]:
    """What each table of cells begins with, then numbers."""
    return [Column("norm"), Column(WHERE), *(Column(name, True) for name in numbers)]
