"""`python -m bnbench.benchmarks.gpu`, which scripts/gpu_check calls."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bnbench.benchmarks.figures import Figure
from bnbench.benchmarks.results import keep
from bnbench.launch import Place
from bnbench.training.world import World

from . import agreement, grid, layers, loop, network, shared_gpu, whole_run
from .sizes import Sizes, dry, full

DESCRIPTION = """What only a GPU can show, in one call of under nine minutes, without a network: each kind of norm
against fp64 on the CPU, ResNet-50's steps and layers, the CIFAR-10 grid, a whole run. Exit code 1 if a check fails."""
Part = Callable[[], dict[str, Any]]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=DESCRIPTION)
    parser.add_argument(
        "--dry", action="store_true", help="the same in small on a CPU: no figure means anything"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep the result there as JSON, part by part"
    )
    parser.add_argument(
        "--seconds", type=float, default=500, help="what takes longer is left out and said (default 500)"
    )
    parser.add_argument(
        "--parts", metavar="PART,...", help="of agreement, ranks, layers, network, loop, grid, run"
    )
    options = parser.parse_args(argv)
    try:
        sizes = (dry if options.dry else full)(options.seconds)
        parts = _chosen(options.parts)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    result = check(sizes, parts, lambda so_far: _keep(options.out, argv, so_far))
    failed = [name for name, part in result["parts"].items() if part.get("passed") is False]
    print(
        f"\n{sum(part['seconds'] for part in result['parts'].values()):.0f} s; "
        + (f"failed: {', '.join(failed)}" if failed else "all passed")
    )
    return 1 if failed else 0


def check(sizes: Sizes, parts: list[str], kept: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Every part's findings; what a part raises is its finding, and the others go on."""
    begun = time.perf_counter()
    result: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "parts": {}}
    if sizes.on_gpu:
        result["gpu"] = torch.cuda.get_device_name()
        torch.backends.cudnn.benchmark = True

    def is_late() -> bool:
        return time.perf_counter() - begun > sizes.seconds

    def add(name: str, part: Part, table: Callable[[dict[str, Any]], str]) -> None:
        if is_late():
            print(f"\nleft out for time: {name}")
            result["parts"][name] = {"seconds": 0.0, "left_out": "time"}
        else:
            result["parts"][name] = _found(part, table)
        result["figures"] = [each.to_json() for each in figures(result["parts"])]
        kept(result)

    if "ranks" in parts:  # before this process has a world
        add("ranks", lambda: shared_gpu.measure(sizes), shared_gpu.table)
    with tempfile.TemporaryDirectory() as folder:
        world = World.join(Place(0, 1, 0, 1), "gpu" if sizes.on_gpu else "cpu", str(Path(folder) / "store"))
        try:
            table: dict[str, tuple[Part, Callable[[dict[str, Any]], str]]] = {
                "agreement": (lambda: agreement.measure(sizes), agreement.table),
                "run": (lambda: whole_run.measure(sizes, world), whole_run.table),
                "loop": (lambda: loop.measure(sizes, world), loop.table),
                "grid": (lambda: grid.measure(sizes, world, is_late), grid.table),
                "layers": (lambda: layers.measure(sizes, is_late), layers.table),
                "network": (lambda: network.measure(sizes, is_late), network.table),
            }
            for name in [name for name in table if name in parts]:
                add(name, *table[name])
        finally:
            world.leave()
    return result


def figures(parts: dict[str, Any]) -> list[Figure]:
    """What `bnbench bench compare` reads."""
    found = []
    for norm, row in parts.get("loop", {}).items():
        if isinstance(row, dict):
            low, high = row["ratio_interval"]
            found.append(Figure(f"ResNet-50 step, {norm}", row["ratio"], low, high, target=row["target"]))
    grid_ = parts.get("grid", {}).get("grid")
    if grid_ is not None:
        minutes = grid_.get("minutes_together", grid_["minutes"])
        seconds, target = 60 * minutes, 60.0 * grid_["target_minutes"]
        found.append(Figure("CIFAR-10 grid, projected", seconds, unit="s", target=target))
    for how in ("eager", "compiled"):
        for kind, row in parts.get("network", {}).get(how, {}).items():
            name = f"ResNet-50 {how}, {kind}"
            found.append(Figure(name, row["images_per_s"], unit="images/s", better="higher"))
    return found


PARTS = ("ranks", "agreement", "run", "loop", "grid", "layers", "network")


def _chosen(text: str | None) -> list[str]:
    names = list(PARTS) if text is None else text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"--parts={text}: {', '.join(unknown)} is unknown; known: {', '.join(PARTS)}")
    return names


def _found(part: Part, table: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        found = part()
        text = table(found)
    except Exception:
        found, text = {"passed": False, "error": traceback.format_exc()}, traceback.format_exc()
    found["seconds"] = time.perf_counter() - begun
    print(f"\n{text}\n({found['seconds']:.0f} s)", flush=True)
    return found


def _keep(folder: Path | None, argv: list[str], result: dict[str, Any]) -> None:
    if folder is not None:
        keep(folder, "gpu-check", argv, json.loads(json.dumps(result)), "scripts/gpu_check")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
