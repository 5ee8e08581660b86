"""The sections of the page, in its order: what is said, drawn and listed in each, before any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bnbench.analysis.answer import Answer, Panel, TimeToTarget
from bnbench.report import charts
from bnbench.report.charts import Chart, Entry
from bnbench.report.context import PageContext
from bnbench.report.numbers import count
from bnbench.report.sides import summary
from bnbench.report.style import looks

from . import words
from .cell_tables import CellTables
from .prose import Block, blocks
from .record_tables import RecordTables
from .tables import Table

MOST_PANELS = 8  # that are drawn; the tables have the cells of all
MOST_OPEN = 40  # rows of a table that is not closed at first
MOST_CURVES = 24  # charts of learning curves, of all panels together

Draw = Callable[[Panel], Sequence[Chart | None]]


@dataclass(frozen=True)
class Part:
    """What a section says of one panel; `title` "" where there is only one."""

    title: str = ""
    sentences: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    legend: tuple[Entry, ...] = ()  # of all its charts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """`explain` is Markdown of ours; `notes` may hold words from records. With nothing to show, `missing` says why."""

    key: str
    title: str
    explain: str = ""
    parts: tuple[Part, ...] = ()
    blocks: tuple[Block, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""

    @property
    def empty(self) -> bool:
        return not (self.parts or self.blocks or self.tables)

    @property
    def paired(self) -> bool:
        """Whether parts stand side by side: each has one chart."""
        return len(self.parts) > 1 and all(len(part.charts) == 1 for part in self.parts)

    def folds(self, table: Table) -> bool:
        """Whether a table is closed at first: a chart shows its numbers, or it is long."""
        return bool(self.parts) or len(table.rows) > MOST_OPEN


@dataclass
class Sections:
    """Makes the sections of one page. Charts are numbered through, so that each has a name of its own."""

    answer: Answer
    context: PageContext
    _charts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.looks = looks(cell.line for panel in self.answer.panels for cell in panel.cells)
        self.cells = self.answer.cells
        self.cell_tables = CellTables(self.answer, self.context, self.looks)
        self.record_tables = RecordTables(self.context)

    def verdict(self) -> Section:
        """The first screen: each panel in words and in the main figure."""
        parts = [Part(panel.title, panel.sentences) for panel in self.answer.overall]
        parts += [Part(panel.title, panel.sentences, drawn) for panel, drawn in self._panels(self._error)]
        undrawn = [panel for panel in self.answer.panels[:MOST_PANELS] if panel.ranged]
        undrawn += self.answer.panels[MOST_PANELS:]
        parts += [Part(panel.title, panel.sentences) for panel in undrawn]
        explain = words.figure([panel for panel in self.answer.panels if not panel.ranged])
        return Section("answer", "The answer", explain, tuple(parts), notes=self._undrawn())

    def others(self) -> list[Section]:
        """In the order of `words.SECTIONS`."""
        cells, records = self.cell_tables, self.record_tables
        return [
            _section("comparisons", tables=[cells.contrasts(), cells.crossovers()], notes=self._together()),
            _section("sides", tables=[cells.sides()], notes=self._sides()),
            _section("cells", tables=[cells.cells()]),
            _section("tradeoffs", self._parts(self._pareto)),
            _section("time", self._parts(self._times), tables=[cells.times()]),
            _section("curves", self._curves(), tables=[cells.curves()]),
            _section("cost", self._parts(self._costs), tables=[cells.costs()], notes=self._uncontrolled()),
            _section("health", self._parts(self._health), tables=[cells.health()]),
            _section("rates", blocks=blocks(self.context.tuning, "rates")),
            _section("fairness", blocks=blocks(self.context.fairness, "fairness", headings=False)),
            _section("published", tables=[cells.published()]),
            _section("claims", blocks=records.claims()),
            _section("runs", tables=[records.runs()]),
            _section("provenance", tables=[records.provenance(), records.settings(), records.problems()]),
        ]

    def _error(self, panel: Panel) -> list[Chart | None]:
        return [] if panel.ranged else [charts.error_against_nbs(panel, self.looks, self._key())]

    def _pareto(self, panel: Panel) -> list[Chart | None]:
        return [charts.pareto(panel, self.looks, self._key())]

    def _times(self, panel: Panel) -> list[Chart | None]:
        own: dict[float, list[TimeToTarget]] = {}
        for each in self.answer.times:
            if self._of(panel, each.cell):
                own.setdefault(each.target, []).append(each)
        return [
            charts.time_to_target(panel.title, times, self.cells, self.looks, self._key())
            for times in own.values()
        ]

    def _costs(self, panel: Panel) -> list[Chart | None]:
        own = [each for each in self.answer.costs if self._of(panel, each.cell)]
        if not own:
            return []
        return [
            charts.step_times(panel.title, own, self.cells, self.looks, self._key()),
            charts.step_parts(panel.title, own, self.cells, self._key()),
        ]

    def _sides(self) -> tuple[str, ...]:
        pairs = dict.fromkeys((side.left, side.right) for side in self.answer.sides)
        return tuple(
            f"{left} and {right}: "
            + summary([side for side in self.answer.sides if (side.left, side.right) == (left, right)])
            for left, right in pairs
        )

    def _together(self) -> tuple[str, ...]:
        return (words.TOGETHER,) if self.answer.overall else ()

    def _uncontrolled(self) -> tuple[str, ...]:
        controlled = any(each.control_ms is not None for each in self.answer.costs)
        return () if controlled or not self.answer.costs else (words.NO_CONTROL,)

    def _health(self, panel: Panel) -> list[Chart | None]:
        own = [each for each in self.context.health if self._of(panel, each.cell)]
        return [charts.error_by_statistics(panel.title, own, self.cells, self.looks, self._key())]

    def _curves(self) -> list[Part]:
        curves = {curve.cell: curve for curve in self.answer.curves if curve.error}
        parts: list[Part] = []
        left = MOST_CURVES
        for panel in self.answer.panels[:MOST_PANELS]:
            drawn, legend, notes = charts.learning_curves(panel, curves, self.looks, self._key())
            if len(drawn) > left:
                cut = f"{left} of {len(drawn)} charts are drawn: a page has {MOST_CURVES} of them. The table has all."
                notes = (*notes, cut)
            if drawn:
                parts.append(Part(self._title(panel), (), tuple(drawn[:left]), legend, notes))
            left -= len(drawn[:left])
        return parts

    def _parts(self, draw: Draw) -> list[Part]:
        return [Part(self._title(panel), (), drawn) for panel, drawn in self._panels(draw)]

    def _panels(self, draw: Draw) -> Iterator[tuple[Panel, tuple[Chart, ...]]]:
        """The panels that are drawn, with their charts; those without any are left out."""
        for panel in self.answer.panels[:MOST_PANELS]:
            drawn = tuple(chart for chart in draw(panel) if chart is not None)
            if drawn:
                yield panel, drawn

    def _undrawn(self) -> tuple[str, ...]:
        rest = len(self.answer.panels) - MOST_PANELS
        if rest <= 0:
            return ()
        return (
            f"{count(rest, 'further panel')} of {len(self.answer.panels)} are not drawn, here and below: the tables "
            "have their numbers, and fewer folders named to bnbench report their figures.",
        )

    def _title(self, panel: Panel) -> str:
        return panel.title if len(self.answer.panels) > 1 else ""

    def _of(self, panel: Panel, cell: str) -> bool:
        return cell in self.cells and self.cells[cell].panel == panel.key

    def _key(self) -> str:
        self._charts += 1
        return f"chart-{self._charts}"


def _section(
    key: str,
    parts: Iterable[Part] = (),
    *,
    blocks: Iterable[Block] = (),
    tables: Iterable[Table] = (),
    notes: tuple[str, ...] = (),
) -> Section:
    said = words.SECTIONS[key]
    filled = tuple(table for table in tables if table.rows)
    return Section(key, said.title, said.explain, tuple(parts), tuple(blocks), filled, notes, said.missing)
