"""What the page explains in place, and what it says of a section without data: Markdown, none of it from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnbench.analysis.answer import Panel

NOTHING_COMPARED = "Nothing is compared here: add a second norm, and seeds to pair: `norm=bn,gn seed=0,1,2`."


def figure(panels: Sequence[Panel]) -> str:
    """What is drawn in the main figures, and only that."""
    cells = [cell for panel in panels for cell in panel.cells]
    errors = [cell.error for cell in cells if cell.error is not None]
    sized = any(cell.nbs is not None for cell in cells)
    said = {
        "**NBS**, the normalization batch size: how many images share statistics.": sized,
        "A norm without NBS is a dashed level.": sized and any(cell.nbs is None for cell in cells),
        "**Bars and bands**: 95% intervals over seeds.": any(error.n > 1 for error in errors),
        "**Faint points**: single seeds, of norms with an NBS.": any(
            cell.nbs is not None and cell.error is not None and cell.error.n > 1 for cell in cells
        ),
        "One seed has no interval.": any(error.n == 1 for error in errors),
        "A **cross** at the top: no run has an error to show.": len(errors) < len(cells),
        "A **diamond** below marks the NBS at which two norms meet, on straight lines between what was measured; its "
        "bar ends at the nearest NBS at which they are told apart.": any(
            panel.crossovers for panel in panels
        ),
    }
    return " ".join(sentence for sentence, true in said.items() if true)


TOGETHER = (
    "Together: the mean over these panels of the differences of each seed. Its interval holds for other seeds on these "
    "networks and data, not for others."
)
NO_CONTROL = (
    "No completed run without norms with a step time is among these: what the norms add to a step is not known. "
    "norm=none with the same model and data would tell."
)


@dataclass(frozen=True)
class Words:
    """A section's title; what it explains; what would give it its data, where there is none."""

    title: str
    explain: str
    missing: str


# In the page's order.
SECTIONS = {
    "comparisons": Words(
        "Comparisons",
        "Runs are paired by seed: the same first weights, the same order of images. A **difference** is left - "
        "right in points of validation error, with its 95% interval (Student's t), which covers the seeds' variation "
        "and nothing else. **p (Holm)** is corrected for how many comparisons its family makes; each family has a "
        "chance of 5% for a false verdict of its own (`--family page`: the page as a whole). The left is **better** "
        "or **worse** where p (Holm) is below 0.05; **not distinguishable** is not the same as equal. **d_z** is the "
        "mean difference in units of its spread; **P(left lower)** how often a run of the left had the lower error; "
        "**pairs to resolve** so many points: seeds that one test by itself would take at this spread, which few "
        "seeds tell roughly; a corrected one takes more. `bnbench report --baseline gn` compares with another norm.",
        "add a second norm, and seeds to pair: `norm=bn,gn seed=0,1,2`.",
    ),
    "sides": Words(
        "Side by side",
        "The runs that two folders hold, paired by seed: another machine's, or another commit's. The right is "
        "**worse** or **slower** where its p, two-sided by Student's t and corrected by Holm over these rows, is below "
        "0.05. Where seeds diverged on one side they are counted, and nothing is tested.",
        "name two folders that hold the same runs: `bnbench report A B`.",
    ),
    "cells": Words(
        "Every cell",
        "A cell holds the runs that differ only by seed. **Error**: mean validation error of its completed runs, "
        "± half of its 95% interval; a run that diverged or failed is counted under **lost** and in **stability**, the "
        "share of a cell's runs that completed, and never averaged. "
        "Over completed runs, step time is a mean, images/s (all ranks together) and memory are medians; device-hours "
        "are those of all its runs.",
        "no record held a cell.",
    ),
    "tradeoffs": Words(
        "Error, step time and memory",
        "A cell is **on the front** where no other is at least as good in mean error, mean step time and, where it "
        "differs by more than 5%, peak memory, and better in one. Outlined markers are on it; numbers beside "
        "markers are NBS.",
        "no completed run recorded a step time; runs of one epoch or more do.",
    ),
    "time": Words(
        "Time and device-hours to a target error",
        "Training time until an evaluation was at or below the target, mean over a cell's seeds with its 95% interval; "
        "evaluation and start-up are not counted. Where a seed never came there is no mean, since that of the "
        "others would be a choice: a cross at the edge. `bnbench report --target` sets another target; "
        "`evals_per_epoch=4` looks for it more often.",
        "no completed run has its evaluations in an `epochs.csv` beside its record.json.",
    ),
    "curves": Words(
        "Learning curves",
        "Validation error over training, the mean of a cell's completed seeds with its 95% interval; a chart for "
        "each NBS, the norms without NBS dashed in each.",
        "they are in `epochs.csv` beside a completed run's record.json: keep the runs' folders whole.",
    ),
    "cost": Words(
        "What a norm costs",
        "**Added** is the step time minus that of the same network without norms (`norm=none`, which keeps a scale and "
        "a bias for each channel: what takes less than these adds less than nothing), and **share** its part of the "
        "step. **Collectives** and **bytes** are those of the norm alone, a step and rank. Step times are means over "
        "seeds with their 95% interval, on the machine named above; the parts are of steps that were looked at.",
        "no completed run recorded a step time; add the step without norms too: `norm=bn,gn,none`.",
    ),
    "health": Words(
        "Health of the statistics",
        "Error of the final networks under **running** statistics (as in evaluation), **precise** ones (measured "
        "anew on training images) and those of each **batch**: far apart, running statistics are not what the "
        "network was trained with. **Drift**: how far a batch's statistics are from the running ones, in running "
        "deviations (mean) and as a log ratio (variance). **Spread**: of the means over ranks, in running "
        "deviations. **Eval gap**: the loss of a training batch in evaluation mode minus that in training mode. "
        "Medians over the second half of training, and over seeds. Batch renormalization draws a batch's statistics to "
        "the running ones: for it these two are alike.",
        "runs with a batch norm measure it: `measure=standard` (these had `measure=none`, or no such norm).",
    ),
    "rates": Words(
        "Learning rates",
        "",
        "sweep it, `optim.lr=0.05,0.1,0.2`, or look for the largest stable one: `experiment=lr_range`.",
    ),
    "fairness": Words(
        "Fairness",
        "A comparison is of the swept factors only where nothing else differs. What does is listed; it may be "
        "what you want to compare, and it may explain a difference.",
        "one cell alone: nothing is compared with it.",
    ),
    "published": Words(
        "Published numbers beside ours",
        "Beside ours where a cell's protocol is the source's in what **matches** names; read **differs** with "
        "it.",
        "none of these cells matches a published protocol: `experiment=protocols/wu_he_gn` and others do.",
    ),
    "claims": Words(
        "Claims",
        "What is said of batch normalization, put to the test by runs that were made for it.",
        "no run was made for one: `experiment=claims/small_batch` and eight others are.",
    ),
    "runs": Words(
        "Runs",
        "Every run with its record, the file that all numbers here are made from.",
        "none are listed.",
    ),
    "provenance": Words(
        "Provenance",
        "What the numbers were made with: hardware, versions, commit.",
        "the records state none.",
    ),
}
