"""What a W&B report shows, as blocks of wandb-workspaces: sentences, charts and tables. No network, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnbench import wandb_run
from bnbench.analysis.answer import Answer, CellView, Panel
from bnbench.curves import EVALUATIONS, STEP, WINDOWS
from bnbench.records import Record
from bnbench.report.style import PALETTE
from bnbench.report.wandb_curves import AXIS, ERROR, HIGH, LOW, MEAN, CurveRun

MOST_LINES = 100  # that a chart shows; W&B's own choice is 10
GPUS = 8  # of a node, whose charts are there where it has them
WIDTH, HEIGHT = 12, 9  # of a chart, on W&B's grid of 24 columns
NBS = "normalization batch size (NBS)"
PERCENT = "validation error (%)"

INTRO = (
    "NBS: images that share statistics. A norm that treats each image by itself has none, and is drawn at every NBS. "
    "Errors are in percent, of completed runs only; the 95% interval covers the seeds' variation and nothing else."
)
NOT_THERE = (
    "The training runs are not in this project. bnbench sync FOLDER sends their curves; made again, this report shows "
    "them."
)
SAMPLED = "Of runs that were logged while they trained, or sent by wandb sync; bnbench sync sends no system metrics."
CURVES = {
    "Validation error (%)": EVALUATIONS["val_error"],
    "Validation loss": EVALUATIONS["val_loss"],
    "Training loss": WINDOWS["loss"],
    "Training images per second, all ranks": WINDOWS["images_per_s"],
}
HOST: dict[str, list[Any]] = {
    "CPU (%)": ["system/cpu"],
    "Memory of the process (MB)": ["system/proc.memory.rssMB"],
}
DEVICES = {  # a metric of each GPU
    "GPU utilization (%)": "gpu",
    "GPU memory (bytes)": "memoryAllocatedBytes",
    "GPU power (W)": "powerWatts",
}


def blocks(
    answer: Answer, records: Sequence[Record], runs: Mapping[str, CurveRun], trained: bool
) -> list[Any]:
    """The report from top to bottom.

    `runs`: the curve runs, by W&B's id. `trained`: whether the records' training runs are in the report's project.
    """
    import wandb_workspaces.reports.v2 as wr

    found: list[Any] = [wr.H1(answer.title), wr.P(INTRO)]
    labels = {record.identity["data"].get("label") for record in records} - {None}
    found += [wr.CalloutBlock(label) for label in sorted(labels)]
    lines = dict.fromkeys(cell.line for panel in answer.panels for cell in panel.cells)
    colours = {
        line: PALETTE[place % len(PALETTE)] for place, line in enumerate(lines)
    }  # the same in each panel
    for panel in answer.overall:
        found += [wr.H2(panel.title), wr.UnorderedList(items=list(panel.sentences))]
    for panel in answer.panels:
        found += _panel(panel, {key: run for key, run in runs.items() if run.panel == panel.key}, colours)
    if not trained:
        return [*found, wr.H2("Training"), wr.P(NOT_THERE)]
    system = [wr.H2("System"), wr.P(SAMPLED), _system(records)]
    return [*found, wr.H2("Training"), _training(records), *system]


def _panel(panel: Panel, runs: Mapping[str, CurveRun], colours: Mapping[str, str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    found: list[Any] = [wr.H2(panel.title)]
    if panel.sentences:
        found.append(wr.UnorderedList(items=list(panel.sentences)))
    if runs:
        runset = wr.Runset(name="error against NBS", filters=f"ID in {list(runs)!r}")
        found.append(wr.PanelGrid(runsets=[runset], panels=[_interval(runs, colours), _seeds()]))
    return [*found, wr.MarkdownBlock(table(panel))]


def _interval(runs: Mapping[str, CurveRun], colours: Mapping[str, str]) -> Any:
    """Each line's mean, and dotted the ends of its interval: the numbers of the page, drawn as they are."""
    import wandb_workspaces.reports.v2 as wr

    means = {key: run for key, run in runs.items() if run.seed is None}
    titles = {MEAN: "", LOW: ": 95% interval, low", HIGH: ": 95% interval, high"}
    drawn = {f"{key}:{name}": (run.line, name) for key, run in means.items() for name in titles}
    return wr.LinePlot(
        **_against_nbs("Mean with its 95% interval"),
        y=[MEAN, LOW, HIGH],
        line_titles={key: f"{line}{titles[name]}" for key, (line, name) in drawn.items()},
        line_colors={key: colours[line] for key, (line, _) in drawn.items()},
        line_marks={key: "solid" if name == MEAN else "dotted" for key, (_, name) in drawn.items()},
        layout=wr.Layout(x=0, y=0, w=WIDTH, h=HEIGHT),
    )


def _seeds() -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        **_against_nbs("Mean over seeds, and the best and worst seed"),
        y=[ERROR],
        groupby=wr.Config("line"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        layout=wr.Layout(x=WIDTH, y=0, w=WIDTH, h=HEIGHT),
    )


def _against_nbs(title: str) -> dict[str, Any]:
    return {
        "title": title,
        "x": AXIS,
        "log_x": True,
        "title_x": NBS,
        "title_y": PERCENT,
        "max_runs_to_show": MOST_LINES,
        # W&B's default cuts x into buckets of equal width: one would hold every small NBS.
        "point_visualization_method": "sampling",
    }


def table(panel: Panel) -> str:
    """The cells of a panel as a markdown table: what the charts show, in numbers."""
    rows = [f"| {' | '.join(_row(cell))} |" for cell in panel.cells]
    heading = "| norm | NBS | seeds | validation error % | 95% interval | other runs |"
    return "\n".join([heading, "| --- | ---: | ---: | ---: | ---: | --- |", *rows])


def _row(cell: CellView) -> list[str]:
    mean = interval = "–"
    if cell.error is not None:
        mean, low, high = f"{cell.error.mean:.2f}", cell.error.low, cell.error.high
        interval = interval if low is None or high is None else f"{low:.2f} to {high:.2f}"
    return [
        cell.line.replace("|", "\\|"),
        "–" if cell.nbs is None else f"{cell.nbs} ({cell.span})",
        str(len(cell.errors)),
        mean,
        interval,
        ", ".join(f"{count} {status}" for status, count in cell.statuses.items() if status != "completed"),
    ]


def _training(records: Iterable[Record]) -> Any:
    return _grid(records, STEP, {title: [metric] for title, metric in CURVES.items()})


def _system(records: Sequence[Record]) -> Any:
    charts = dict(HOST)
    if any((record.provenance.get("device") or {}).get("type") == "cuda" for record in records):
        for title, name in DEVICES.items():
            charts[title] = [f"system/gpu.{index}.{name}" for index in range(GPUS)]
    return _grid(records, "RelativeTime(Process)", charts)


def _grid(records: Iterable[Record], x: str, charts: Mapping[str, list[Any]]) -> Any:
    """Charts of the training runs, two in a row, their runs grouped by norm and NBS."""
    import wandb_workspaces.reports.v2 as wr

    places = [
        wr.Layout(x=WIDTH * (n % 2), y=HEIGHT * (n // 2), w=WIDTH, h=HEIGHT) for n in range(len(charts))
    ]
    runset = wr.Runset(
        name="training runs by norm and NBS",
        filters=f"Group in {training_groups(records)!r} and JobType == {wandb_run.JOB!r}",
        groupby=["config.identity.norm.name", "config.identity.nbs"],
    )
    panels: list[Any] = [
        wr.LinePlot(title=title, x=x, y=y, max_runs_to_show=MOST_LINES, layout=place)
        for (title, y), place in zip(charts.items(), places, strict=True)
    ]
    return wr.PanelGrid(runsets=[runset], panels=panels)


def training_groups(records: Iterable[Record]) -> list[str]:
    """The W&B groups that the records' runs are in, if they are on W&B."""
    return sorted({wandb_run.group(record.config) for record in records if "logger" in record.config})
