"""`bnbench bench THEME`: what bnbench costs, as ratios within one interleaved run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its ratios, and with --out keep them."""
    parser = argparse.ArgumentParser(prog="bnbench bench", description=__doc__)
    parser.add_argument("theme", choices=["step"], help="step: a training step against a bare torch loop")
    parser.add_argument("--pairs", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--steps", type=int, default=150, help="timed steps a block (default 150)")
    parser.add_argument("--out", type=Path, help="folder for <theme>_<hardware>_<date>.json, e.g. results")
    options = parser.parse_args(list(argv))
    if options.pairs < 1 or options.steps < 1:
        raise ValueError(f"--pairs={options.pairs} and --steps={options.steps} must be at least 1")
    from bnbench.benchmarks import step

    result = step.measure(options.pairs, options.steps)
    print(step.table(result))
    if options.out is not None:
        from bnbench.benchmarks.results import keep

        print(f"kept in {keep(options.out, options.theme, list(argv), result)}")
    return 0
