"""Where the panels of the divergence figure stand, and their axes: everything in inches, nothing left to chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import coordcheck.reporting.figures.style as style

# inches, at the house's size of text
LEFT = 0.62  # of a vertical axis: its name and its numbers
SECOND = 0.1  # more of it between two panels
BELOW = 0.38  # of a horizontal one
ABOVE = 0.22  # of the names of the steps
LINE = 0.145  # of text
APART = 0.09  # between panels
MARGIN = 1.2  # of the horizontal axes beyond the widths, as a factor
MIN_OCTAVES = 4.0  # of the vertical axes: a flat line must look flat, and noise is not zoomed in on
MOST_WIDTHS = 4  # named on the horizontal axis


@dataclass(frozen=True)
class Layout:
    """Sizes in inches; places are from the figure's lower left corner."""

    scale: float
    """Of texts, and of everything that makes room for them."""
    across: int
    """Labels in a row."""
    rows: int
    """Rows of labels."""
    groups: tuple[int, int]
    """Columns that show scales, and columns that show changes; each group has a vertical axis of its own."""
    margin: float
    """At the right of each label's panels, for the names of lines."""
    header: float
    """Above each label's panels, for its title."""
    foot: float
    """Below everything, for the key."""
    panel: tuple[float, float]
    """Width and height."""

    @property
    def columns(self) -> int:
        return sum(self.groups)

    @property
    def beside(self) -> float:
        """What a label takes beside its panels, horizontally."""
        second = LEFT + SECOND - APART if all(self.groups) else 0.0
        return self.scale * (LEFT + second + APART * (self.columns - 1)) + self.margin

    @property
    def between(self) -> float:
        """What the figure takes beside its panels, vertically."""
        return self.scale * (ABOVE + BELOW + APART * (self.rows - 1)) + self.rows * self.header + self.foot

    @property
    def block(self) -> float:
        """The width of a label."""
        return self.beside + self.columns * self.panel[0]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure."""
        return self.across * self.block, self.between + self.rows * self.panel[1]

    def corner(self, number: int, column: int) -> tuple[float, float]:
        """The lower left corner of a panel of the label with this number."""
        row, place = divmod(number, self.across)
        x = place * self.block + self.scale * LEFT + column * (self.panel[0] + APART * self.scale)
        if column >= self.groups[0] > 0:
            x += self.scale * (LEFT + SECOND - APART)
        top = self.size[1] - self.scale * ABOVE - row * (self.header + self.panel[1] + APART * self.scale)
        return x, top - self.header - self.panel[1]

    def on_figure(self, x: float, y: float) -> tuple[float, float]:
        """Inches as fractions of the figure."""
        return x / self.size[0], y / self.size[1]


def place_axes(figure: Figure, layout: Layout, labels: int) -> list[list[Axes]]:
    """The panels of each label.

    Their limits are set alike when all data are in. They do not share them by matplotlib's own means, which make the
    time grow as the square of the number of panels.
    """
    size = layout.on_figure(*layout.panel)
    corners = [[layout.corner(number, column) for column in range(layout.columns)] for number in range(labels)]
    found = [[figure.add_axes((*layout.on_figure(*corner), *size)) for corner in row] for row in corners]
    for axis in (axis for row in found for axis in row):
        axis.set_autoscale_on(False)
    return found


def finish_axes(
    axes: Sequence[Sequence[Axes]], layout: Layout, widths: Sequence[int], names: tuple[str, list[str], int]
) -> None:
    """Scales, limits, ticks and names, once all data are in.

    An octave is as high in all panels, so that equal slopes look equal.

    Args:
        axes: per label, per column.
        layout: where they stand.
        widths: all of them, ascending.
        names: of the horizontal axes, of the vertical axis of each column, and how many lines of text stand below the
            lines of the first group.
    """
    groups = [range(layout.groups[0]), range(layout.groups[0], layout.columns)]
    ranges = [_range([row[column] for row in axes for column in group]) for group in groups]
    share = min(0.5, names[2] * 1.3 * style.size(style.SMALL) / 72 / layout.panel[1])  # of a panel
    least = MIN_OCTAVES / (1 - share)
    ranges[0] = ranges[0][0] - share * max(least, (ranges[0][1] - ranges[0][0]) / (1 - share)), ranges[0][1]
    octaves = max(MIN_OCTAVES, *(high - low for low, high in ranges)) * 1.1
    named = widths_named(widths, layout.panel[0])
    ticks = max(2.0, layout.panel[1] * 72 / (1.7 * style.points("ytick.labelsize")))  # so many have room
    bottom = range(len(axes) - layout.across, len(axes))  # the lowest label in each column of labels
    for number, row in enumerate(axes):
        for column, axis in enumerate(row):
            middle = sum(ranges[int(column >= layout.groups[0])]) / 2
            _set_axes(axis, (middle - octaves / 2, middle + octaves / 2), (widths, named), ticks)
            axis.tick_params(labelleft=column in (0, layout.groups[0]), labelbottom=number in bottom)
            if number in bottom:
                axis.set_xlabel(names[0], labelpad=1)
            if column in (0, layout.groups[0]):
                axis.set_ylabel(names[1][column])
                axis.yaxis.set_label_coords(-(LEFT - 0.06) * layout.scale / layout.panel[0], 0.5)
                axis.yaxis.label.set_verticalalignment("top")


def _range(axes: Sequence[Axes]) -> tuple[float, float]:
    """From the lowest to the highest point of any line or band, in log2; (0, 0) where there is none."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for a in axes for line in a.lines if line.get_marker() != "x"]
    bands = [np.asarray(path.vertices)[:, 1] for a in axes for band in a.collections for path in band.get_paths()]
    known = np.concatenate([*lines, *bands, np.empty(0)])
    known = known[np.isfinite(known) & (known > 0)]
    return (float(np.log2(known.min())), float(np.log2(known.max()))) if len(known) else (0.0, 0.0)


def _set_axes(
    axis: Axes, heights: tuple[float, float], content: tuple[Sequence[int], Sequence[int]], ticks: float
) -> None:
    """Log2 axes; their ticks are made here, because they take the style that is in force when they are made."""
    widths, named = content
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlim(widths[0] / MARGIN, widths[-1] * MARGIN)
    axis.set_ylim(2.0 ** heights[0], 2.0 ** heights[1])
    axis.minorticks_off()
    axis.set_xticks(list(named), [f"{width:g}" for width in named])
    axis.tick_params(axis="x", pad=2)
    if len(named) < min(len(widths), 3):
        *first, last = axis.get_xticklabels()
        last.set_horizontalalignment("right")
        for label in first:
            label.set_horizontalalignment("left")
    step = max(1, math.ceil((heights[1] - heights[0]) / ticks))
    powers = range(math.ceil(heights[0] / step) * step, math.floor(heights[1]) + 1, step)
    axis.set_yticks([2.0**exponent for exponent in powers], list(map(power_of_two, powers)))


def power_of_two(exponent: int) -> str:
    """1/8, 1/2, 1, 4, 1024: what a reader expects on a log2 axis.

    >>> power_of_two(-3), power_of_two(5)
    ('1/8', '32')
    """
    if abs(exponent) > 13:
        return style.minus(f"2^{exponent}")
    return f"{2**exponent}" if exponent >= 0 else f"1/{2**-exponent}"


def widths_named(widths: Sequence[int], inches: float) -> list[int]:
    """Both ends, and of the widths between as many as have room in a panel of so many inches."""
    if len(widths) == 1:
        return list(widths)
    octaves = math.log2(widths[-1] / widths[0]) + 2 * math.log2(MARGIN)
    size = style.points("xtick.labelsize")
    room = {width: style.text_width(f"{width:g}", size) + 0.05 for width in widths}
    for count in range(min(len(widths), MOST_WIDTHS), 1, -1):
        found = [widths[place] for place in np.linspace(0, len(widths) - 1, count).round().astype(int)]
        gaps = [math.log2(b / a) / octaves * inches - (room[a] + room[b]) / 2 for a, b in pairwise(found)]
        edge = 2 * math.log2(MARGIN) / octaves * inches + APART  # between the last one here and the first one beside it
        if count == 2:  # then they stand inside of the ends
            return found if room[found[0]] + room[found[1]] < inches else found[1:]
        if min(gaps) > 0 and edge > (room[found[0]] + room[found[-1]]) / 2:
            return found
    return list(widths)
