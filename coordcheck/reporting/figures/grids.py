"""Where the panels of a figure with a row per name stand: names at their left, notes below them, all in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

import coordcheck.reporting.figures.style as style
from coordcheck.common.errors import CoordCheckError
from coordcheck.reporting.figures.views import View

NOTE = 0.16  # inches, of a line below the panels
BESIDE = 0.16  # inches, between the names and the panels


class Margins(NamedTuple):
    """Around the panels, in inches at the house's size of text."""

    top: float
    """Above each line of panels."""
    bottom: float
    """Below each line of panels."""
    right: float
    """Of the last panel in a line."""
    apart: float
    """Between two panels in a line."""


class Grid(NamedTuple):
    """Panels of one size, in lines."""

    scale: float
    """Of texts, and of everything that makes room for them."""
    margins: Margins
    across: int
    """Panels in a line."""
    lines: int
    left: float
    """For the names of the rows."""
    panel: tuple[float, float]
    """Width and height."""
    notes: tuple[str, ...] = ()
    """Lines of text below the panels."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure."""
        beside = self.scale * (self.margins.right + (self.across - 1) * self.margins.apart)
        width = self.left + self.across * self.panel[0] + beside
        return width, self.lines * self.line + len(self.notes) * NOTE * self.scale

    @property
    def line(self) -> float:
        """The height of a line of panels."""
        return self.panel[1] + (self.margins.top + self.margins.bottom) * self.scale

    def box(self, place: int) -> tuple[float, float, float, float]:
        """A panel's place, as fractions of the figure."""
        line, column = divmod(place, self.across)
        (width, height), (wide, high) = self.size, self.panel
        x = self.left + column * (wide + self.margins.apart * self.scale)
        y = height - line * self.line - self.margins.top * self.scale - high
        return x / width, y / height, wide / width, high / height

    def noted(self, notes: Sequence[str]) -> Grid:
        """With these notes below it, in lines that fit."""
        size, room = style.size(style.SMALL), self.size[0] - 0.2
        return self._replace(notes=tuple(line for note in notes for line in style.wrapped(note, size, room)))

    def fitted(self, view: View, least: tuple[float, float], what: str) -> Grid:
        """With panels as large as the figure that is asked for lets them be.

        Raises:
            CoordCheckError: they were smaller than `least`, and could not show `what`.
        """
        if view.figsize is None:
            return self
        spare = view.figsize[0] - self.size[0], view.figsize[1] - self.size[1]
        panel = self.panel[0] + spare[0] / self.across, self.panel[1] + spare[1] / self.lines
        if panel[0] < least[0] or panel[1] < least[1]:
            raise CoordCheckError(
                f"figsize={view.figsize} inches leaves no room for {what} beside their names. "
                f"Give figsize=({math.ceil(self.size[0])}, {math.ceil(self.size[1])}), or fewer layers."
            )
        return self._replace(panel=panel)


def names_width(texts: Sequence[str]) -> float:
    """What the names of the rows take at the left of the panels."""
    size = style.points("ytick.labelsize")
    return max(style.text_width(text, size) for text in texts) + BESIDE * style.scale()


def write_notes(figure: Figure, grid: Grid) -> None:
    """The notes at the figure's lower edge."""
    look: Any = {"transform": figure.dpi_scale_trans, "fontsize": style.size(style.SMALL), "color": style.ink(0.7)}
    for line, note in enumerate(reversed(grid.notes)):
        figure.text(0.08, 0.05 + line * NOTE * grid.scale, note, **look)
