"""`bnbench bench THEME`: what bnbench costs, as ratios within one interleaved run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its figures, and with --out keep them. ValueError for a bad option."""
    options = _parser().parse_args(list(argv))
    theme: str = options.theme
    result, text = THEMES[theme].run(options)
    print(text)
    if "out" in options and options.out is not None:
        from bnbench.benchmarks.results import keep

        print(f"kept in {keep(options.out, theme, list(argv), result)}")
    return 0


def _step(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import step

    result = step.measure(options.rounds, options.ranks, step.chosen(options.sizes))
    return result, step.table(result)


def _sweep(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.rounds < 1 or options.runs < 2:
        raise ValueError(f"--rounds={options.rounds} must be at least 1 and --runs={options.runs} at least 2")
    from bnbench.benchmarks import sweep

    result = sweep.measure(options.rounds, options.runs)
    return result, sweep.table(result)


def _measuring(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.rounds < 1:
        raise ValueError(f"--rounds={options.rounds} must be at least 1")
    from bnbench.benchmarks import measuring

    result = measuring.measure(options.rounds)
    return result, measuring.table(result)


def _norms(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import norms
    from bnbench.benchmarks.norms_table import table

    settings = norms.Settings(
        shape=options.shape,
        kinds=options.kinds or norms.ALL,
        threads=options.threads,
        rounds=options.rounds,
        memory_format=options.memory_format,
        dtype=options.dtype,
        device=options.device,
        ranks=options.ranks,
        memory=options.memory,
    )
    result = norms.measure(settings)
    return {"variant": settings.variant, **result}, table(result)


def _data(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import data

    result = data.measure(data.Settings(options.images, options.rounds, options.workers))
    return result, data.table(result)


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import report

    result = report.measure(options.records, options.rounds)
    return result, report.table(result)


def _startup(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import startup

    result = startup.measure(options.rounds)
    return result, startup.table(result)


def _compare(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bnbench.benchmarks import compare

    return {}, compare.table(*compare.read(options.files))


class _Parser(argparse.ArgumentParser):
    """A bad option is a ValueError, which `bnbench` prints in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def _step_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--rounds", type=int, default=10, help="interleaved rounds (default 10)")
    step.add_argument("--ranks", type=int, default=2, help="gloo ranks on this machine's CPUs (default 2)")
    step.add_argument(
        "--sizes",
        type=_words,
        metavar="SIZE,...",
        help="resnet8-32, resnet8-2, resnet50-4: network and images a rank (default: all)",
    )


def _sweep_options(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    sweep.add_argument("--runs", type=int, default=10, help="runs of a sweep (default 10)")


def _measuring_options(measuring: argparse.ArgumentParser) -> None:
    measuring.add_argument("--rounds", type=int, default=8, help="interleaved rounds (default 8)")


def _norms_options(norms: argparse.ArgumentParser) -> None:
    norms.add_argument(
        "--shape", type=_shape, default=(64, 64, 32, 32), metavar="N,C,H,W", help="default 64,64,32,32"
    )
    norms.add_argument("--kinds", type=_words, metavar="KIND,...", help="names of norms (default: all)")
    norms.add_argument(
        "--rounds",
        type=int,
        default=20,
        help="interleaved rounds (default 20; 6 or more for an interval of 95%%)",
    )
    norms.add_argument("--threads", type=int, default=1, help="CPU threads (default 1), of each rank too")
    norms.add_argument(
        "--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: input in bf16, layer under autocast"
    )
    norms.add_argument("--memory-format", choices=["contiguous", "channels_last"], default="contiguous")
    norms.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the layers (default cpu)")
    norms.add_argument(
        "--ranks",
        type=int,
        default=2,
        help="gloo ranks on this machine's CPUs for what spans ranks (default 2; 1: leave it out)",
    )
    norms.add_argument(
        "--memory",
        choices=["kept", "system"],
        default="kept",
        help="kept: the allocator keeps what it frees, so that no layer pays for page faults by chance (default); "
        "system: as it comes",
    )


def _data_options(data: argparse.ArgumentParser) -> None:
    data.add_argument("--rounds", type=int, default=6, help="interleaved rounds (default 6)")
    data.add_argument("--images", type=int, default=50_000, help="images of the set (default 50000)")
    data.add_argument("--workers", type=int, default=2, help="worker processes of the DataLoader (default 2)")


def _report_options(report: argparse.ArgumentParser) -> None:
    report.add_argument("--rounds", type=int, default=12, help="rounds over all sizes (default 12)")
    report.add_argument(
        "--records",
        type=_numbers,
        default=(100, 1000, 10_000),
        metavar="COUNT,...",
        help="sizes of the folder, ascending (default 100,1000,10000)",
    )


def _startup_options(startup: argparse.ArgumentParser) -> None:
    startup.add_argument("--rounds", type=int, default=10, help="interleaved rounds (default 10)")


def _compare_options(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="what --out kept, or a folder of such files"
    )


@dataclass(frozen=True)
class Theme:
    """`run` returns the result, as JSON holds it, and the text that is printed; it imports what measures."""

    help: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], tuple[dict[str, Any], str]]
    keeps: bool = True  # whether it has a result for --out


THEMES = {
    "step": Theme(
        "a training step against a bare torch loop",
        "A training step under bnbench, with all that it does and logs, and under plain Lightning, against a bare "
        "torch loop with the same network, images, optimizer, schedule and ranks. About 10 minutes.",
        _step_options,
        _step,
    ),
    "sweep": Theme(
        "a run of a sweep against one process group per run",
        "What a further run of a sweep costs beside its training, on one warm world and with a new world for each, "
        "against a process group of its own: 2 CPU ranks, a tiny model, W&B offline. About 4 minutes.",
        _sweep_options,
        _sweep,
    ),
    "measuring": Theme(
        "what it adds to training that a run looks at its own speed",
        "What looking at the parts of a step, and counting its operations and collectives once, adds to training on 2 "
        "CPU ranks, for three sizes of network and batch. About 10 minutes.",
        _measuring_options,
        _measuring,
    ),
    "norms": Theme(
        "each normalization against torch's own layers",
        "Forward and backward time of each normalization, as its ratio to torch's own layer; what it keeps for "
        "the backward pass; its collectives. Every round visits every layer on the same tensors, each next to "
        "its reference; the table shows the median ratio and a distribution-free interval of it. About 5 minutes.",
        _norms_options,
        _norms,
    ),
    "data": Theme(
        "the input pipeline against a DataLoader with torchvision's transforms",
        "Images a second of bnbench's loader on one CPU thread, CIFAR-size, cropped, flipped and normalized in batches "
        "of 128, against a DataLoader whose workers do the same with torchvision's v2 transforms, on tensors and on "
        "PIL images. Steady state: starting the workers is left out. About 3 minutes.",
        _data_options,
        _data,
    ),
    "report": Theme(
        "seconds and memory of `bnbench report` over up to 10,000 records",
        "Processor seconds and peak memory of `bnbench report` as a whole process, without a cache, over folders of "
        "made-up records, and what a further record takes as they grow. About 3 minutes.",
        _report_options,
        _report,
    ),
    "startup": Theme(
        "how long the verbs' --help take",
        "Seconds of `bnbench --help` and of each of three verbs' as a whole process, beside a bare Python and one that "
        "imports torch, and whether they import torch. About 2 minutes.",
        _startup_options,
        _startup,
    ),
    "compare": Theme(
        "kept results of one theme side by side",
        "Figures of results files that --out kept, theme by theme, those of each file beside the first one's: "
        "`faster` or `slower` where the two intervals lie apart, else `within noise`.",
        _compare_options,
        _compare,
        keeps=False,
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bnbench bench", description=__doc__)
    themes = parser.add_subparsers(dest="theme", metavar="THEME", required=True)
    out = _Parser(add_help=False)
    out.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep the result there: <theme>_<hardware>_<date>.json"
    )
    for name, theme in THEMES.items():
        one = themes.add_parser(
            name, parents=[out] if theme.keeps else [], help=theme.help, description=theme.description
        )
        theme.add_options(one)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,C,H,W, four numbers") from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not COUNT,..., numbers") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))
