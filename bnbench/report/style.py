"""How a line looks, in every figure alike: its colour, marker and dashes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Line = TypeVar("Line", bound=Hashable)

# Okabe & Ito's colour-blind-safe palette without its yellow, which is too light on white; black last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# By matplotlib's name, with Plotly's.
MARKERS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}
DASHES = {"--": "dash", "-.": "dashdot", ":": "dot"}  # of a norm without NBS, which is a level
BAND = 0.16  # opacity of an interval drawn as a band


@dataclass(frozen=True)
class Look:
    """`marker` and `dashes` are matplotlib's names, `symbol` and `dash` Plotly's."""

    colour: str
    marker: str
    dashes: str

    @property
    def symbol(self) -> str:
        return MARKERS[self.marker]

    @property
    def dash(self) -> str:
        return DASHES[self.dashes]

    @property
    def band(self) -> str:
        """The colour of its interval as a band, as Plotly takes it."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return f"rgba({red},{green},{blue},{BAND})"


def looks(lines: Iterable[Line]) -> dict[Line, Look]:
    """A look for each line, in their order. The eighth line has the first one's colour, but another marker."""
    markers, dashes = tuple(MARKERS), tuple(DASHES)
    found = {}
    for index, line in enumerate(dict.fromkeys(lines)):
        turn = index + index // len(PALETTE)
        found[line] = Look(
            PALETTE[index % len(PALETTE)], markers[turn % len(markers)], dashes[turn % len(dashes)]
        )
    return found
