"""Made-up answers, small and large, with all that a page may have to show.

`python -m tests.report.answers page.html` writes the page of one; a second word chooses another of `MADE`.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from bnbench.analysis.answer import (
    Answer,
    CellView,
    Contrast,
    Crossover,
    Curve,
    Interval,
    NormCost,
    Outcome,
    Panel,
    Published,
    SideBySide,
    TimeToTarget,
)
from bnbench.analysis.claims import judge
from bnbench.analysis.paired import holm, paired
from bnbench.report.html import HealthRow, PageContext, RunRow, render
from tests.analysis.test_claims import EVIDENCE

HOSTILE = (
    "</script><script>alert(1)</script> <b>bold</b> <img src=x onerror=alert(1)> "
    '& "quoted" %{x} {{ 1 + 1 }} | $x_1$ <!-- '
)
SIZES = (2, 4, 16, 64)
SPANS = {2: "ghost", 4: "ghost", 16: "ghost", 64: "world"}
SEEDS = 3
# Percent at NBS 64, and what smaller batches add; milliseconds a step; bytes.
NORMS: dict[str, tuple[float, float, float, float]] = {
    "none": (19.0, 0.0, 15.6, 210e6),
    "bn": (10.4, 9.0, 17.9, 260e6),
    "brn r_max 3": (10.9, 3.4, 21.2, 275e6),
    "gn": (12.6, 0.0, 18.7, 240e6),
    "frn": (13.4, 0.0, 19.9, 330e6),
}
WITH_NBS = ("bn", "brn r_max 3")


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95% t interval."""
    if not values:
        return None
    found = paired(values)
    mean = math.fsum(values) / len(values)
    return (
        Interval(mean, None, None, 1) if found is None else Interval(mean, found.low, found.high, len(values))
    )


def cell(panel: str, line: str, nbs: int | None, draw: random.Random, harder: float = 0.0) -> CellView:
    level, small, step, memory = NORMS[line]
    mean = level + harder + (0.0 if nbs is None else small * (2 / nbs) ** 0.8)
    errors = tuple(mean + draw.gauss(0, 0.45) for _ in range(SEEDS))
    step *= 1 + (0.35 if nbs == 64 else 0) + draw.gauss(0, 0.01)
    return CellView(
        key=f"{panel}-{line}-{nbs}",
        panel=panel,
        line=line,
        norm=line.split()[0],
        nbs=nbs,
        span=None if nbs is None else SPANS[nbs],
        settings={},
        error=interval(errors),
        errors=errors,
        statuses={"completed": SEEDS},
        images_per_s=64_000 / step,
        step_ms=step,
        peak_bytes=memory * (1 + 0.2 * draw.random()),
        gpu_hours=SEEDS * step * 480 / 3.6e6,
    )


def lost(view: CellView, status: str = "diverged", runs: int = SEEDS) -> CellView:
    """A cell of which as many runs did not complete."""
    errors = view.errors[: SEEDS - runs]
    statuses = {name: number for name, number in (("completed", SEEDS - runs), (status, runs)) if number}
    if errors:
        return dataclasses.replace(view, error=interval(errors), errors=errors, statuses=statuses)
    return dataclasses.replace(
        view, error=None, errors=(), statuses=statuses, step_ms=None, images_per_s=None, peak_bytes=None
    )


def with_front(cells: Sequence[CellView]) -> list[CellView]:
    """Cells that no other is at least as good as in error, step time and memory."""

    def cost(view: CellView) -> tuple[float, ...] | None:
        if view.error is None or view.step_ms is None or view.peak_bytes is None:
            return None
        return view.error.mean, view.step_ms, view.peak_bytes

    costs = [cost(view) for view in cells]
    return [
        dataclasses.replace(
            view,
            on_front=own is not None
            and not any(
                other != own and other is not None and all(a <= b for a, b in zip(other, own, strict=True))
                for other in costs
            ),
        )
        for view, own in zip(cells, costs, strict=True)
    ]


def contrasts(panel: str, cells: Sequence[CellView]) -> list[Contrast]:
    """Each cell against bn, at its own NBS or at every one of bn's."""
    pairs = [
        (left, right)
        for left in cells
        for right in cells
        if right.line == "bn" and left.line != "bn" and left.nbs in (None, right.nbs)
    ]
    found = {}
    for at, (left, right) in enumerate(pairs):
        differences = [a - b for a, b in zip(left.errors, right.errors, strict=False)]
        if (own := paired(differences)) is not None:
            found[at] = own
    corrected = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    made = []
    for at, (left, right) in enumerate(pairs):
        own = found.get(at)
        outcome: Outcome = "too few pairs" if left.errors and right.errors else "lost"
        difference = None
        if own is not None:
            outcome = "not distinguishable"
            if corrected[at] < 0.05 and not own.low <= 0 <= own.high:
                outcome = "better" if own.mean < 0 else "worse"
            difference = Interval(own.mean, own.low, own.high, SEEDS)
        made.append(
            Contrast(
                panel=panel,
                family=f"against bn, {panel}",
                left=left.key,
                right=right.key,
                left_label=left.line if left.nbs is None else f"{left.line} at NBS {left.nbs}",
                right_label=f"bn at NBS {right.nbs}",
                nbs=right.nbs,
                pairs=SEEDS if own else 0,
                outcome=outcome,
                difference=difference,
                p=own.p if own else None,
                p_holm=corrected.get(at),
                effect=own.d_z if own else None,
                improvement=0.67 if own else None,
                seeds_needed=9 if own else None,
                note="" if own else "no seed completed on both sides",
            )
        )
    return made


def panel(key: str, title: str, draw: random.Random, harder: float = 0.0) -> Panel:
    cells = []
    for line in NORMS:
        for nbs in SIZES if line in WITH_NBS else (None,):
            made = cell(key, line, nbs, draw, harder)
            if line == "brn r_max 3" and nbs == 2:
                made = lost(made)  # as a whole
            elif line == "bn" and nbs == 2:
                made = lost(made, runs=1)
            cells.append(made)
    cells = with_front(cells)
    return Panel(
        key,
        title,
        tuple(cells),
        tuple(contrasts(key, cells)),
        (
            Crossover(key, "bn", "gn", 6.3 + harder, 4.4, 9.9 + 2 * harder, 2, 64),
            Crossover(key, "brn r_max 3", "gn", 3.1, None, 5.2, 2, 64),
        ),
        (
            f"Below an NBS of 4 on {title}, gn has the lower error; from 16 on, bn has.",
            "At NBS 2, gn is 4.7 points better than bn [3.1, 6.3]; one of bn's three runs diverged there.",
            "At NBS 64, bn is 2.2 points better than gn [1.0, 3.4] and takes 29 % more time a step.",
            "brn r_max 3 diverged on all seeds at NBS 2; from 4 on it is not distinguishable from bn.",
        ),
    )


def curve(view: CellView, draw: random.Random, evaluations: int = 12) -> Curve:
    steps = tuple(40 * (at + 1) for at in range(evaluations))
    final = view.error.mean if view.error else 90.0
    errors = tuple(
        final + (85 - final) * math.exp(-at / 2.2) + draw.gauss(0, 0.3) for at in range(evaluations)
    )
    half = [2 + 6 * math.exp(-at / 2) for at in range(evaluations)]
    several = view.error is not None and view.error.n > 1
    return Curve(
        view.key,
        steps,
        tuple(step / 40 for step in steps),
        tuple(step * (view.step_ms or 20) / 1000 for step in steps),
        errors,
        tuple(error - h if several else None for error, h in zip(errors, half, strict=True)),
        tuple(error + h if several else None for error, h in zip(errors, half, strict=True)),
    )


def whole(line: str = "") -> tuple[Answer, PageContext]:
    """Two panels with every section; `line` gives one norm another name."""
    draw = random.Random(0)
    panels = [
        panel("small", "resnet8 on digits, 64 images on 2 ranks", draw),
        panel("deep", "resnet20 on digits, 64 images on 2 ranks", draw, harder=2.0),
    ]
    if line:
        panels = [
            dataclasses.replace(
                each,
                cells=tuple(
                    dataclasses.replace(view, line=line) if view.line == "frn" else view
                    for view in each.cells
                ),
            )
            for each in panels
        ]
    views = [view for each in panels for view in each.cells]
    done = [view for view in views if view.error is not None]
    control = {view.panel: view.step_ms or 0.0 for view in done if view.line == "none"}
    answer = Answer(
        title="Which normalization for ResNets on digits?",
        panels=tuple(panels),
        curves=tuple(curve(view, draw) for view in done),
        times=tuple(_time(view, draw) for view in views),
        costs=tuple(_cost(view, control[view.panel]) for view in done),
        sides=tuple(_side(view) for view in done[:4]),
        published=(
            Published(
                "Wu & He 2018, table 1",
                "https://arxiv.org/abs/1803.08494",
                "primary text",
                "ResNet-50, ImageNet, GN at 32 images a GPU: validation error %",
                24.1,
                None,
                "nothing yet",
                "model, data, epochs",
            ),
            Published(
                "He et al. 2016, table 6",
                "https://arxiv.org/abs/1512.03385",
                "secondary",
                "ResNet-20, CIFAR-10, BN at 128: test error %",
                8.75,
                Interval(8.9, 8.4, 9.4, 3),
                "model, data, recipe",
                "whole epochs",
            ),
        ),
    )
    health = [
        HealthRow(
            view.key, e := view.error.mean, e - 0.5 * draw.random(), e + draw.random(), 0.11, 0.19, 0.05, 0.02
        )
        for view in done
        if view.nbs is not None and view.error is not None
    ]
    records = [record for claim in ("small_batch", "depth") for record in EVIDENCE[claim](20, 3)]
    by_claim = {
        claim: [r for r in records if r.config.get("claim") == claim] for claim in ("small_batch", "depth")
    }
    return answer, PageContext(
        command="bnbench report runs/mine --out runs/mine/report",
        claims=judge(by_claim),
        fairness="## Fairness: what differs besides the swept factors\n\nSwept: norm, NBS. Besides, these differ:\n\n"
        "- norm.eps: 1e-05 (bn, brn, gn); 1e-06 (frn)\n- norm.momentum: 0.1 (bn); 0.01 (brn)\n\n"
        "Paired: runs of one seed, model, data and batch started from the same convolutions (the hashes agree).\n",
        tuning="## Tuned learning rates\n\nThe best learning rate of each cell.\n\n"
        "| model | norm | NBS | best LR | LRs tried | edge |\n| --- | --- | --- | --- | --- | --- |\n"
        "| resnet8 | bn | 64 | 0.2 | 3: 0.1, 0.2, 0.4 |  |\n| resnet8 | gn | – | 0.1 | 3: 0.1, 0.2, 0.4 | lower |\n",
        health=health,
        settings=(("recipe.name", "sgd"), ("recipe.epochs", "12"), ("gn: norm.num_groups", "8")),
        provenance=(
            ("code.commit", "0123456789abcdef0123456789abcdef01234567"),
            ("device.name", "a made-up device"),
            ("versions.torch", "2.11.0"),
        ),
        runs=[run for view in views for run in _runs(view)],
        problems=("runs/mine/bad/record.json: schema 99 is not one of 1: written by a newer bnbench",),
        labels=("Made-up numbers: for tests of the page.",),
        files={name: name for name in ("report.md", "cells.csv", "runs.csv", "table.tex", "figure.svg")},
    )


def _time(view: CellView, draw: random.Random) -> TimeToTarget:
    reached = 0 if view.error is None or view.line == "none" else len(view.errors)
    seconds = [4.1 * (view.step_ms or 0) / 16 + draw.gauss(0, 0.15) for _ in range(reached)]
    hours = math.fsum(seconds) * 2 / 3600 if seconds else None
    return TimeToTarget(view.key, 20.0, reached, SEEDS, interval(seconds), hours)


def _cost(view: CellView, control: float) -> NormCost:
    mean = view.step_ms or 0.0
    added = mean - control
    parts = {"data_wait": 0.4, "forward": 0.3 * mean, "backward": 0.52 * mean, "communication": 0.02 * mean}
    parts["optimizer"] = mean - sum(parts.values())
    return NormCost(
        view.key,
        Interval(mean, 0.97 * mean, 1.03 * mean, SEEDS),
        control,
        added,
        added / mean,
        18.0 if view.nbs == 64 else 0.0,
        18 * 4 * 65.0 if view.nbs == 64 else 0.0,
        parts,
    )


def _runs(view: CellView) -> list[RunRow]:
    made = []
    statuses = [status for status, number in view.statuses.items() for _ in range(number)]
    for seed, status in enumerate(statuses):
        name = f"{view.panel}-{view.norm}-{view.nbs}-s{seed}"
        completed = status == "completed"
        made.append(
            RunRow(
                name,
                status,
                f"../{name}/record.json",
                view.errors[seed] if completed else None,
                None if completed else f"training loss not finite at step {17 + seed}",
                f"https://wandb.ai/team/mine/runs/{name}" if seed == 0 else None,
            )
        )
    return made


def hostile() -> tuple[Answer, PageContext]:
    """The whole answer with text that means mischief wherever a record's text may come to stand."""
    answer, context = whole(line=HOSTILE)
    first = dataclasses.replace(
        answer.panels[0],
        title=HOSTILE,
        sentences=(HOSTILE,),
        contrasts=tuple(
            dataclasses.replace(each, family=HOSTILE, left_label=HOSTILE, right_label=HOSTILE, note=HOSTILE)
            for each in answer.panels[0].contrasts
        ),
    )
    published = tuple(
        dataclasses.replace(each, source=HOSTILE, url="javascript:alert(1)", what=HOSTILE, matches=HOSTILE)
        for each in answer.published
    )
    runs = [
        RunRow(HOSTILE, HOSTILE, f"javascript:alert(1)//{HOSTILE}", None, HOSTILE, "javascript:alert(1)"),
        RunRow("a host", "completed", "//example.invalid/record.json"),
    ]
    return dataclasses.replace(
        answer, title=HOSTILE, panels=(first, answer.panels[1]), published=published
    ), dataclasses.replace(
        context,
        command=HOSTILE,
        fairness=f"- {HOSTILE}\n- ![seen](https://example.invalid/a.png) [go](https://example.invalid)\n\n{HOSTILE}\n",
        tuning=f"## {HOSTILE}\n\n| model | norm |\n| --- | --- |\n| {HOSTILE.replace('|', '/')} | x |\n",
        provenance=((HOSTILE, HOSTILE),),
        settings=((HOSTILE, HOSTILE),),
        problems=(HOSTILE,),
        labels=(HOSTILE,),
        runs=[*runs, *context.runs],
    )


def bare() -> tuple[Answer, PageContext]:
    """One norm with one seed, and nothing else measured."""
    view = CellView(
        "one", "p", "gn", "gn", None, None, {}, Interval(13.0, None, None, 1), (13.0,), {"completed": 1}
    )
    answer = Answer("gn on digits", (Panel("p", "resnet8 on digits", (view,)),))
    runs = [RunRow("gn-s0", "completed", "../gn-s0/record.json", 13.0)]
    return answer, PageContext("bnbench report runs/one", runs=runs)


def _side(view: CellView) -> SideBySide:
    """As another machine ran it: a longer step, no other error."""
    return SideBySide(
        cell=view.key,
        left="runs/here",
        right="runs/there",
        pairs=SEEDS,
        difference=Interval(0.1, -0.4, 0.6, SEEDS),
        p_holm=0.7,
        outcome="not distinguishable",
        speed=Interval(1.3, 1.21, 1.4, SEEDS),
        speed_p_holm=0.01,
        speed_outcome="worse",
    )


def large(runs: int = 10_000) -> tuple[Answer, PageContext]:
    """As many runs, in panels of 11 cells of 3 seeds."""
    draw = random.Random(1)
    count = math.ceil(runs / (11 * SEEDS))
    panels = tuple(panel(f"p{index}", f"model {index} on digits", draw) for index in range(count))
    views = [view for each in panels for view in each.cells]
    done = [view for view in views if view.error is not None]
    answer = Answer(
        "A large sweep",
        panels,
        curves=tuple(curve(view, draw, 200) for view in done),
        times=tuple(_time(view, draw) for view in views),
        costs=tuple(_cost(view, 15.0) for view in done),
    )
    health = [HealthRow(view.key, 12.0, 11.9, 12.4, 0.1, 0.2, 0.05, 0.0) for view in done]
    context = PageContext(
        "bnbench report runs/large",
        health=health,
        runs=[run for view in views for run in _runs(view)][:runs],
        files={"cells.csv": "cells.csv", "runs.csv": "runs.csv"},
    )
    return answer, context


MADE = {"whole": whole, "hostile": hostile, "bare": bare, "large": large}

if __name__ == "__main__":
    chosen = MADE[sys.argv[2] if len(sys.argv) > 2 else "whole"]
    Path(sys.argv[1]).write_text(render(*chosen()), encoding="utf-8")
