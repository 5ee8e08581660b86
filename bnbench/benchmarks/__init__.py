"""`bnbench bench THEME`: what bnbench costs, as ratios within one interleaved run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its ratios, and with --out keep them. ValueError for a bad option."""
    options = _parser().parse_args(list(argv))
    theme: str = options.theme
    if theme == "step":
        result, text = _step(options)
    elif theme == "sweep":
        result, text = _sweep(options)
    elif theme == "measuring":
        result, text = _measuring(options)
    else:
        result, text, theme = _norms(options)
    print(text)
    if options.out is not None:
        from bnbench.benchmarks.results import keep

        print(f"kept in {keep(options.out, theme, list(argv), result)}")
    return 0


def _step(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.pairs < 1 or options.steps < 1:
        raise ValueError(f"--pairs={options.pairs} and --steps={options.steps} must be at least 1")
    from bnbench.benchmarks import step

    result = step.measure(options.pairs, options.steps)
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


def _norms(options: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
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
    return result, table(result), "-".join(filter(None, ["norms", settings.variant]))


class _Parser(argparse.ArgumentParser):
    """A bad option is a ValueError, which `bnbench` prints in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bnbench bench", description=__doc__)
    themes = parser.add_subparsers(dest="theme", metavar="THEME", required=True)
    out = _Parser(add_help=False)
    out.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep the result there: <theme>_<hardware>_<date>.json"
    )

    step = themes.add_parser("step", parents=[out], help="a training step against a bare torch loop")
    step.description = "A training step under bnbench against a bare torch loop with the same model and data."
    step.add_argument("--pairs", type=int, default=15, help="interleaved rounds (default 15)")
    step.add_argument("--steps", type=int, default=150, help="timed steps a block (default 150)")

    sweep = themes.add_parser(
        "sweep", parents=[out], help="a run of a sweep against one process group per run"
    )
    sweep.description = (
        "What a further run of a sweep costs beside its training, on one warm world and with a new world for each, "
        "against a process group of its own: 2 CPU ranks, a tiny model, W&B offline. About 4 minutes."
    )
    sweep.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    sweep.add_argument("--runs", type=int, default=10, help="runs of a sweep (default 10)")

    measuring = themes.add_parser(
        "measuring", parents=[out], help="what it adds to training that a run looks at its own speed"
    )
    measuring.description = (
        "What looking at the parts of a step, and counting its operations and collectives once, adds to training on 2 "
        "CPU ranks, for three sizes of network and batch. About 10 minutes."
    )
    measuring.add_argument("--rounds", type=int, default=8, help="interleaved rounds (default 8)")

    norms = themes.add_parser("norms", parents=[out], help="each normalization against torch's own layers")
    norms.description = (
        "Forward and backward time of each normalization, as its ratio to torch's own layer; what it keeps for "
        "the backward pass; its collectives. Every round visits every layer on the same tensors, each next to "
        "its reference; the table shows the median ratio and a distribution-free interval of it. About 5 minutes."
    )
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
    norms.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: times by CUDA events")
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
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,C,H,W, four numbers") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))
