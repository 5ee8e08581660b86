"""The tables of what is made of records: claims, runs, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bnbench.analysis.claims import Verdict
from bnbench.report import claims
from bnbench.report.context import PageContext, RunRow
from bnbench.report.numbers import short

from .prose import Block
from .tables import MOST, Column, Table, Value, local, percent, table, web, whole

TONES = {"supported": "good", "not supported": "bad"}


@dataclass(frozen=True)
class RecordTables:
    """A table without rows is not shown."""

    context: PageContext

    def claims(self) -> Iterator[Block]:
        numeric = claims.HEADS[2:8]
        columns = [Column(name, name in numeric) for name in claims.HEADS]
        if self.context.claims:
            yield Block(Markup('<p class="explain">{}</p>').format(claims.LEGEND))
        for result in self.context.claims:
            tone = TONES.get(result.verdict, "quiet")
            head = Markup('<h3>{}: <span class="tone-{}">{}</span></h3><p>{}</p>')
            yield Block(head.format(result.claim, tone, result.verdict, claims.said(result)))
            yield Block(
                table=table(
                    f"claim-{result.claim}", f"Comparisons of {result.claim}", columns, result.rows, _judged
                )
            )
            remarks = Markup().join(
                Markup("<li>{}</li>").format(each) for each in claims.remarks(result.rows)
            )
            if remarks:
                yield Block(Markup("<ul>{}</ul>").format(remarks))

    def runs(self) -> Table:
        """Where not all rows are kept, those that did not complete are."""
        runs = self.context.runs
        order = sorted(range(len(runs)), key=lambda at: runs[at].status == "completed")  # stable
        kept = [runs[at] for at in sorted(order[:MOST])]

        def row(run: RunRow) -> list[Value]:
            return [
                Value(run.name, href=local(run.record)),
                Value(run.status, tone="" if run.status == "completed" else "bad"),
                percent(run.val_error),
                Value("run" if web(run.wandb) else "", href=web(run.wandb)),
                Value(short(run.message or "")),
            ]

        columns = [Column("run"), Column("status"), Column("error %", True), Column("W&B"), Column("message")]
        rest = self.context.files.get("runs.csv")
        return table("run-list", "Runs", columns, kept, row, rest and local(rest), len(runs))

    def provenance(self) -> Table:
        return _pairs("provenance-list", "Hardware, versions, commit", self.context.provenance)

    def settings(self) -> Table:
        return _pairs("settings-list", "Settings that all cells share", self.context.settings)

    def problems(self) -> Table:
        found = list(enumerate(self.context.problems, 1))
        columns = [Column("", True), Column("record")]
        caption = "Notes on records: not used, or incomplete"
        return table("problems", caption, columns, found, lambda pair: [whole(pair[0]), Value(pair[1])])


def _judged(row: Verdict) -> list[Value]:
    """A comparison of a claim."""
    numbers = (None, None, row.left_mean, row.right_mean, row.pairs, row.effect, row.d_z, row.p_holm, None)
    entries = [Value(text, sort) for text, sort in zip(claims.words(row), numbers, strict=True)]
    return [*entries[:-1], Value(row.verdict, tone=TONES.get(row.verdict, "quiet"))]


def _pairs(key: str, caption: str, pairs: Sequence[tuple[str, str]]) -> Table:
    return table(key, caption, [Column("what"), Column("value")], pairs, lambda pair: [*map(Value, pair)])
