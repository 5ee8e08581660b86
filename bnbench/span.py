"""How a normalization batch size (NBS) is reached by ranks and ghosts. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Span:
    """Who shares statistics: `ghosts` groups inside each rank's batch, or `ranks` consecutive ranks.

    One of the two is 1. Image i of a global step belongs to statistics group i mod G on every world
    (G = global batch / NBS), and rank r = g * ranks + q of W takes the images with
    i mod W = g + (W / ranks) * q.
    """

    kind: Literal["ghost", "device", "group", "node", "world"]
    ghosts: int = 1
    ranks: int = 1

    def residue(self, rank: int, world_size: int) -> int:
        """The images of a global step that `rank` takes: those with i mod world_size = residue."""
        group, place = divmod(rank, self.ranks)
        return group + (world_size // self.ranks) * place


DEVICE = Span("device")


def span_of(nbs: int, per_device_batch: int, world_size: int, devices: int | None = None) -> Span:
    """The span that reaches `nbs` images from `per_device_batch` images on each of `world_size` ranks.

    A group of ranks that is one of several nodes, `devices` ranks each, is called by that name.
    Raises ValueError where no arrangement does: NBS has to divide the per-device batch, or be a
    multiple of it by a number of ranks that divides the world.
    """
    if nbs < 1:
        raise ValueError(f"norm.batch_size={nbs} is below 1: it counts the images that share statistics")
    if nbs == per_device_batch:
        return DEVICE
    if nbs < per_device_batch and per_device_batch % nbs == 0:
        return Span("ghost", ghosts=per_device_batch // nbs)
    ranks, rest = divmod(nbs, per_device_batch)
    if nbs > per_device_batch and rest == 0 and world_size % ranks == 0:
        return Span("world" if ranks == world_size else "node" if ranks == devices else "group", ranks=ranks)
    choices = [n for n in range(1, per_device_batch) if per_device_batch % n == 0]
    choices += [per_device_batch * s for s in range(1, world_size + 1) if world_size % s == 0]
    raise ValueError(
        f"norm.batch_size={nbs} cannot be reached from {per_device_batch} images on each of {world_size} "
        f"rank(s): it must divide the per-device batch or be a multiple of it by a divisor of the world; "
        f"possible here: {', '.join(map(str, choices))}"
    )
