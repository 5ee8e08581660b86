"""`bnbench scale`: what SyncBN would cost on 1 to thousands of GPUs, from what the ranks at hand take. No torch here.

words -> one checked run -> messages and steps measured on its ranks -> cost model -> tables, figure, files.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from bnbench.config import RunConfig

    from .prediction import Cluster
    from .result import Result

MOST_GPUS = 2**20
DESCRIPTION = (
    "Step time of a model with BN on each device and with SyncBN over a node, a group and all GPUs, for 1 to thousands "
    "of GPUs, by the alpha-beta model. It measures messages and steps on the ranks that the words ask for "
    "(trainer.devices, or those that torchrun or srun started), says how well it predicts SyncBN's steps there, and "
    "goes on from them. The words are those of bnbench train."
)
EXAMPLES = """\
  bnbench scale model=resnet20 trainer.devices=4
  bnbench scale model=resnet50 data=synthetic data.num_classes=1000 --interconnect 8xndr --out scale
  bnbench scale model=resnet50 data=synthetic data.num_classes=1000 --interconnect nvlink4,8xndr --step-ms 90
  torchrun --nnodes 4 --nproc-per-node 8 -m bnbench.cli scale model=resnet50 trainer.devices=8 trainer.num_nodes=4"""


def main(argv: Sequence[str]) -> int:
    """Measure, predict, tell, and with --out keep it. ValueError for a user's mistake."""
    options = _parser().parse_intermixed_args(list(argv))
    cluster = _cluster(options)
    from bnbench.compose import read_request
    from bnbench.launch import place_given, speaks

    config = read_request(options.words, False, options.config_dir).runs[0]
    check_predictable(config)
    if options.out is not None and speaks(place_given()):
        _make_folder(options.out)
    result = _result(config, cluster, options, argv)
    if not speaks(place_given()):
        return 0
    written: list[Path] = []
    if options.out is not None:  # before it is told: `... | head` must not cost what was measured
        from .result import write

        written = write(result, options.out)
    if options.json:
        print(json.dumps(result.as_json(), indent=1, allow_nan=False))
    else:
        from .table import show

        show(result)
        if written:
            print("\nwrote " + ", ".join(map(str, written)))
    return 0


def check_predictable(config: RunConfig) -> None:
    """Raise ValueError for a setting that the prediction would ignore."""
    norm, trainer = config.norm, config.trainer
    if norm.name not in ("bn", "syncbn"):
        raise ValueError(
            f"norm={norm.name}: scale compares bn on each device with SyncBN; leave norm out, or set norm=bn"
        )
    if norm.batch_size is not None:
        raise ValueError(
            f"norm.batch_size={norm.batch_size} would be ignored: --group says how many GPUs share statistics"
        )
    for key, value, plain in (
        ("norm.placement", norm.placement, "before"),
        ("recipe.accumulate", config.recipe.accumulate, 1),
        ("trainer.compile", trainer.compile, False),
    ):
        if value != plain:
            raise ValueError(f"{key}={value} would be ignored by scale: set {key}={plain}")
    if trainer.precision == "fp64":
        raise ValueError(
            "trainer.precision=fp64: scale counts statistics in fp32; set trainer.precision=fp32 or bf16"
        )


def _result(config: RunConfig, cluster: Cluster, options: argparse.Namespace, argv: Sequence[str]) -> Result:
    from . import prediction
    from .cost_model import Compute
    from .measured import Measured, workload_of
    from .result import Result

    if options.step_ms is not None:
        from .measure import describe

        found = describe(config)
        compute = Compute(options.step_ms / 1000)
        rows = prediction.extrapolate_given(workload_of(found), compute, cluster)
        return Result(argv, config, cluster, found, compute, None, [], rows)
    if config.trainer.world_size == 1 and cluster.within is None:
        raise ValueError(
            "trainer.devices=1: one rank exchanges nothing that could be measured; set trainer.devices=2 or more, or "
            "give the links by --interconnect WITHIN,BETWEEN"
        )
    from .ranks import measure

    found = measure(config, options.rounds)
    measured = Measured.read(found)
    compute = measured.all_rounds.compute(measured.worlds[-1])
    checks, rows = prediction.checks(measured), prediction.extrapolate(measured, cluster)
    return Result(argv, config, cluster, found, compute, measured, checks, rows)


def _cluster(options: argparse.Namespace) -> Cluster:
    from .links import interconnect_named
    from .prediction import Cluster

    for name in ("rounds", "gpus_per_node", "group", "max_gpus"):
        value, most = getattr(options, name), MOST_GPUS
        if not 1 <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')}={value} must lie between 1 and {most}")
    within, between = (
        (None, None) if options.interconnect is None else interconnect_named(options.interconnect)
    )
    if options.step_ms is not None and (options.step_ms <= 0 or within is None):
        raise ValueError(
            f"--step-ms={options.step_ms:g} must be above 0, and goes with --interconnect WITHIN,BETWEEN: with both "
            "nothing is measured"
        )
    return Cluster(options.gpus_per_node, options.group, options.max_gpus, within, between)


def _make_folder(folder: Path) -> None:
    """Before measuring for minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"--out={folder}: cannot be made ({why}): choose another folder") from None


class _Parser(argparse.ArgumentParser):
    """A bad option is a ValueError, which `bnbench` prints in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    from .links import PRESETS

    links = "\n".join(
        f"  {name:8} {preset.what}\n           {preset.source}" for name, preset in PRESETS.items()
    )
    parser = _Parser(
        prog="bnbench scale",
        usage="%(prog)s [GROUP=CHOICE ...] [KEY=VALUE ...] [options]",
        description=textwrap.fill(DESCRIPTION, 110),
        epilog=f"links:\n{links}\n\nexamples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="as of bnbench train")
    parser.add_argument(
        "--interconnect", metavar="[WITHIN,]BETWEEN", help="links by name, rather than as measured"
    )
    parser.add_argument(
        "--step-ms", type=float, metavar="MS", help="a step with BN on each device, rather than measured"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--group", type=int, default=16, metavar="N", help="GPUs of a group, default 16")
    parser.add_argument("--max-gpus", type=int, default=4096, metavar="N", help="default 4096")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="of measuring, default 10")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep figure, tables and measurements there"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--config-dir", metavar="FOLDER", help="your own Hydra configs, as of bnbench train")
    return parser
