"""The result of `bnbench bench norms` as text: aligned, at most 110 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contenders import COLLECTIVE_TARGET

NOTES = """\
ratio: time forward + backward, each round by that of the reference visited beside it. saved: what is kept for
the backward pass, in inputs; the input itself counts, an output only where the layer keeps it (BN + ReLU: 2).
frn and evonorm include the activation, their reference does not. autograd: the formula written down plainly.
"""


def table(result: dict[str, Any]) -> str:
    """A row for each contender, what the columns mean, and the ranks' own table."""
    settings, rows = result["settings"], result["rows"]
    confidence = next(iter(rows.values()))["ratio_interval_confidence"]
    shape = ", ".join(map(str, settings["shape"]))
    memory = "freed memory kept" if settings["memory_kept"] else "the system's allocator"
    load = " and ".join(f"{value:g}" for value in result["load_before_and_after"])
    last = "dtype" if settings["dtype"] != "fp32" else "target"
    lines = [
        f"({shape}) {settings['dtype']} {settings['memory_format']}, {settings['device']}, "
        f"{settings['threads']} thread(s), {settings['clock']}",
        f"{memory}; {settings['rounds']} rounds; load average before and after: {load}",
        "",
        _line("", "forward", "backward", "ratio: median", "to", "saved", "coll.", last),
        _line("", "ms", "ms", f"[{confidence:.0%} interval]", "", "", "", ""),
    ]
    for name, row in rows.items():
        reference = "" if row["reference"] == name else row["reference"]
        tail = row["dtype"] if last == "dtype" else _target(row)
        saved = f"{row['saved_inputs']:.2f}"
        lines.append(
            _line(name, *_times(row), _ratio(row), reference, saved, _plus(row["collectives"]), tail)
        )
    lines += ["", NOTES.rstrip()]
    if result["ranks"]:
        size = result["ranks"]["size"]
        lines.append(
            f"coll.: collectives forward + backward on {size} gloo ranks, at the world's span if there is one."
        )
    if "vbn" in settings["kinds"]:
        lines.append("vbn normalizes its reference batch, here as many images again, beside the batch.")
    if result["ranks"]:
        lines += ["", *_ranks_table(result["ranks"])]
    return "\n".join(lines)


def _ranks_table(ranks: dict[str, Any]) -> list[str]:
    lines = [
        f"At the world's span on {ranks['size']} gloo ranks, one such batch on each, wall time of rank 0:",
        _line("", "ms", "ms", "ratio", "to", "", "coll.", "target"),
    ]
    for name, row in ranks["rows"].items():
        names = ranks["collectives"][name]
        target = ""
        if row["kind"] in ("bn", "syncbn"):
            met = tuple(len(each) for each in names) == COLLECTIVE_TARGET
            target = f"{COLLECTIVE_TARGET[0]}+{COLLECTIVE_TARGET[1]} {'yes' if met else 'no'}"
        to = "" if row["kind"] == "reference" else "each rank by itself"
        lines.append(_line(name, *_times(row), _ratio(row), to, "", _plus(names), target))
    return lines


def _line(
    name: str, forward: str, backward: str, ratio: str, to: str, saved: str, collectives: str, target: str
) -> str:
    return f"{name:24}{forward:>8} {backward:>8}  {ratio:18} {to:20} {saved:>5} {collectives:5} {target}".rstrip()


def _times(row: dict[str, Any]) -> tuple[str, str]:
    forward, backward = row["forward_ms"], row["backward_ms"]
    digits = 2 if forward + backward >= 1 else 4
    return f"{forward:.{digits}f}", f"{backward:.{digits}f}"


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_interval"]
    digits = 2 if high < 10 else 1
    return f"{row['ratio']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _target(row: dict[str, Any]) -> str:
    parts = [
        f"{row[f'{what}_target']:g} {row[f'{what}_met']}"
        for what in ("ratio", "saved")
        if row.get(f"{what}_target") is not None
    ]
    return ", ".join(parts)


def _plus(names: Sequence[Sequence[str]] | None) -> str:
    return "" if names is None else "+".join(str(len(each)) for each in names)
