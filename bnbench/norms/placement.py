"""Norm before the activation, as networks are built, or after it: an axis of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .edits import why_not_moved
from .graph import check_rewritable, trace
from .places import norm_places
from .rewrite import PLACEMENTS, check_inner, rewrite, rewriting


@dataclass
class PlacementReport:
    """What `place_norms` did: the norms now behind their activation, and why the others stayed."""

    placement: str
    moved: list[str] = field(default_factory=list)
    stayed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.placement == "before":
            return f"placement before: {len(self.stayed)} norms where the model was built with them"
        lines = [f"placement after: {len(self.moved)} norms moved, {len(self.stayed)} stayed"]
        for reason, count in Counter(self.stayed.values()).most_common():
            first = next(path for path, why in self.stayed.items() if why == reason)
            lines.append(f"  {count} stayed, {reason} (first {first})")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For the record: counts by reason, not every layer."""
        reasons = dict(Counter(reason for reason in self.stayed.values() if reason))
        return {
            "placement": self.placement, "moved": len(self.moved), "stayed": len(self.stayed),
            "reasons": reasons,
        }  # fmt: skip


def place_norms(model: nn.Module, placement: str) -> PlacementReport:
    """Put the norms of `model` before (as built) or after the activation that follows them, in place.

    `after` turns conv -> norm -> relu into conv -> relu -> norm wherever an activation (ReLU, ReLU6,
    LeakyReLU, ELU, SiLU, Mish, GELU, Hardswish; module or function) alone reads a norm's output, in training and
    evaluation mode both, auxiliary heads included, and norm -> relu -> conv into relu -> norm -> conv. The other
    norms stay. Parameters, state_dict keys and the model object are the same; `before` restores. A swap keeps
    the placement. A container inside that is called by itself runs as it was built.

    Raises UntraceableError (a ValueError) where torch.fx cannot follow the forward, and ValueError for a norm
    that includes the activation, a model without norms, or one where nothing would move.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement {placement!r}; known: {', '.join(PLACEMENTS)}")
    check_rewritable(model)
    check_inner(model)
    places, _ = norm_places(model)
    name = type(model).__name__
    if not places:
        raise ValueError(f"place_norms: {name} holds no norm over channels to place")
    if placement == "before":
        if rewriting(model).placement == "after":
            rewrite(model, "before", rewriting(model).erased)
        return PlacementReport("before", stayed={place.path: "" for place in places})
    for place in places:
        if getattr(place.module, "includes_activation", False):
            raise ValueError(
                f"place_norms: {place.path} is {type(place.module).__name__}, which includes the activation, so "
                "that nothing comes after it: leave placement=before, or swap to another norm first"
            )
    traced = trace(model)
    reasons = {place.path: why_not_moved(traced, place.path) for place in places}
    moved = [path for path, reason in reasons.items() if not reason]
    if not moved:
        raise ValueError(
            f"place_norms: no norm of {name} is followed by an activation, so that placement=after would change "
            f"nothing ({reasons[places[0].path]}): leave placement=before"
        )
    rewrite(model, "after", traced=traced)
    return PlacementReport("after", moved, {path: reason for path, reason in reasons.items() if reason})
