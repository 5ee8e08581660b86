"""Each claim's verdict, from the runs that were made for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnbench import catalog
from bnbench.analysis.paired import holm, paired
from bnbench.records import Record

from .measures import MEASURES, Measure, Run
from .pairs import Instance, Key, depth, instances, select, settings, tune
from .table import RELATIVE, TABLE, Comparison, Side
from .verdict import AGAINST, CONTEXT, MISSING, OPEN, SUPPORTED, Verdict, decide

FEWEST = 2  # pairs; with two an interval is wide, and only a large effect leaves zero out


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its comparisons, those of context last."""

    claim: str
    states: str
    lost: str  # how runs count that diverged
    runs: int
    rows: tuple[Verdict, ...]

    @property
    def verdict(self) -> str:
        """A claim stands where each of its comparisons does; one on the other side is a counterexample."""
        found = {row.verdict for row in self.rows} - {CONTEXT}
        for word in (AGAINST, MISSING, OPEN):
            if word in found:
                return word
        return SUPPORTED if found else MISSING


def judge(evidence: Mapping[str, Sequence[Record]]) -> list[ClaimResult]:
    """A result for each claim that has records, in the catalog's order. `evidence`: by `Collected.evidence`."""
    return [
        _judge(claim, [Run.of(record) for record in evidence[claim]])
        for claim in catalog.CLAIMS
        if evidence.get(claim)
    ]


def _judge(claim: str, runs: Sequence[Run]) -> ClaimResult:
    rows: list[Verdict] = []
    seen: set[frozenset[tuple[str, str]]] = set()
    for comparison in TABLE[claim].comparisons:
        rows += _compare(claim, comparison, runs, seen)
    judged = [index for index, row in enumerate(rows) if row.p is not None and row.verdict != CONTEXT]
    adjusted = holm([rows[index].p or 0.0 for index in judged])
    for index, p_holm in zip(judged, adjusted, strict=True):
        row = rows[index]
        rows[index] = dataclasses.replace(row, p_holm=p_holm, verdict=_decided(row, p_holm))
    rows.sort(key=lambda row: row.verdict == CONTEXT)  # stable
    return ClaimResult(claim, catalog.CLAIMS[claim], TABLE[claim].lost, len(runs), tuple(rows))


def _decided(row: Verdict, p_holm: float) -> str:
    assert row.effect is not None and row.low is not None and row.high is not None
    middle = 1.0 if row.ratio else 0.0
    return decide(row.effect - middle, row.low - middle, row.high - middle, p_holm, row.better)


def _compare(
    claim: str, comparison: Comparison, runs: Sequence[Run], seen: set[frozenset[tuple[str, str]]]
) -> list[Verdict]:
    left, right = (select(side, runs, comparison.varies) for side in (comparison.left, comparison.right))
    blank = _blank(claim, comparison)
    if not left or not right:
        side = comparison.right if left else comparison.left
        return [dataclasses.replace(blank, missing=f"no run is {side.label} ({_words(side)})")]
    said: dict[tuple[Key, Key], list[str]] = {}
    if comparison.tuned:
        left, right, said = tune(left, right, comparison)
        if comparison.reported and any(
            run.number(MEASURES[comparison.reported].key) is not None for run in left + right
        ):
            comparison = _measured_by(comparison, comparison.reported)
            blank = _blank(claim, comparison)
    found = instances(comparison, left, right)
    if not found:
        what = "the smallest and largest NBS are one" if left == right else "no two runs agree in all else"
        return [dataclasses.replace(blank, missing=f"{what}, their seed included")]
    deepest = max(depth(run) for run in runs)
    rows = []
    for instance, setting in zip(found, settings(found), strict=True):
        same = frozenset((run.record.id, name) for run in instance.runs for name in _measures(comparison))
        if same in seen:  # on one rank, a device's batch is the world's
            continue
        seen.add(same)
        notes = [words for own in instance.own for words in said.get((instance.context, _rateless(own)), ())]
        if any("the best of" in words for words in notes) and not instance.runs[0].flat.get(
            "data.val_images"
        ):
            notes.append("chosen on the images that it is validated on (data.val_images=n holds some out)")
        row = _row(dataclasses.replace(blank, setting=setting), comparison, instance, notes)
        decides = comparison.decides == "everywhere" or (
            comparison.decides == "deepest" and depth(instance.runs[0]) == deepest
        )
        rows.append(row if decides else dataclasses.replace(row, verdict=CONTEXT))
    return rows


def _measured_by(comparison: Comparison, measure: str) -> Comparison:
    left, right = (dataclasses.replace(side, measure=measure) for side in (comparison.left, comparison.right))
    return dataclasses.replace(comparison, left=left, right=right)


def _measures(comparison: Comparison) -> tuple[str, str]:
    return comparison.left.measure, comparison.right.measure


def _rateless(own: Key) -> Key:
    return tuple(pair for pair in own if pair[0] != "recipe.lr")


def _blank(claim: str, comparison: Comparison) -> Verdict:
    measure = MEASURES[comparison.left.measure]
    return Verdict(
        claim=claim,
        left=comparison.left.label,
        right=comparison.right.label,
        setting="",
        measure=measure.name,
        unit=measure.unit,
        better=comparison.better,
        ratio=measure.ratio,
        pairs=0,
    )


def _words(side: Side) -> str:
    return ", ".join(f"{key}={value}" for key, value in side.where.items())


def _row(blank: Verdict, comparison: Comparison, instance: Instance, notes: Sequence[str]) -> Verdict:
    """The numbers of one comparison; its verdict waits for the others' p values."""
    ratio, pairs = blank.ratio, instance.pairs
    notes = [*notes, *_left_out(instance), *_limits(comparison, instance)]
    to, back = (math.log, math.exp) if ratio else (float, float)
    row = dataclasses.replace(blank, pairs=len(pairs), notes=tuple(notes))
    labels = [
        _label(side, run)
        for side, run in zip((comparison.left, comparison.right), instance.runs, strict=False)
    ]
    row = dataclasses.replace(row, left=labels[0], right=labels[1])
    if pairs:
        means = [back(math.fsum(to(pair[side]) for pair in pairs) / len(pairs)) for side in (0, 1)]
        row = dataclasses.replace(row, left_mean=means[0], right_mean=means[1])
    if instance.diverged[0] != instance.diverged[1]:
        numbers = " and ".join(f"{n} of {label}" for n, label in zip(instance.diverged, labels, strict=True))
        return dataclasses.replace(row, missing=f"diverged: {numbers}; the rest are a choice")
    found = paired([to(one) - to(other) for one, other in pairs])
    if found is None:
        have = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of runs that share a seed"
        equal = " that differ by the same: a third seed would tell" if len(pairs) == FEWEST else ""
        return dataclasses.replace(row, missing=f"{have}{equal or f', and {FEWEST} are the fewest'}")
    return dataclasses.replace(
        row,
        effect=back(found.mean),
        low=back(found.low),
        high=back(found.high),
        d_z=found.d_z,
        p=found.p,
        verdict=OPEN,
    )


def _label(side: Side, run: Run) -> str:
    """The side, with the NBS that it came to."""
    return f"{side.label} ({run.flat.get('nbs')})" if side.where.get("nbs") in RELATIVE else side.label


def _left_out(instance: Instance) -> list[str]:
    counts = ", ".join(f"{count} {why}" for why, count in sorted(instance.left_out.items()))
    return [f"left out: {counts}"] if counts else []


def _limits(comparison: Comparison, instance: Instance) -> list[str]:
    """What a number hides: runs that count for a worst outcome, and ranges that ended too early."""
    measure = MEASURES[comparison.left.measure]
    runs = list({id(run): run for run in instance.runs}.values())
    notes = []
    lost = [run for run in runs if _counts_as_worst(measure, run)]
    if lost:
        how = "never reached the target" if measure.key == "steps_to_target" else "diverged"
        notes.append(f"{_by_norm(lost)}: {how}")
    ends = [run for run in runs if run.record.metrics.get("lr_range_exhausted") is True]
    if ends:
        notes.append(f"{_by_norm(ends)}: stable to the end of the range; raise schedule.lr_end")
    return notes


def _counts_as_worst(measure: Measure, run: Run) -> bool:
    if measure.worst is None or measure.of(run) is None:
        return False
    return measure.read(run) is None or run.record.status != "completed"


def _by_norm(runs: Sequence[Run]) -> str:
    names = [str(run.flat.get("norm.name")) for run in runs]
    return ", ".join(f"{names.count(name)} {name} run(s)" for name in dict.fromkeys(names))
