"""The key below the divergence figure: what colours and kinds of lines mean, in a line of text or a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import coordcheck.reporting.figures.style as style
from coordcheck.analysis.marks import Mark
from coordcheck.reporting.figures.curves import DASHED, HEAVY, LIGHT, Curves
from coordcheck.reporting.figures.views import Column

LINE, BAR, SAMPLE, GAP = 0.155, (0.7, 0.07), 0.2, 0.2  # inches


class Item(NamedTuple):
    """One entry of the key."""

    sample: str
    """What is drawn before the text: "heavy", "dashed", "band", "cross"; or the bar of colours between two texts."""
    text: str
    after: str = ""

    @property
    def width(self) -> float:
        """In inches."""
        size, gap = style.size(style.SMALL), 0.05 * style.scale()
        own = (BAR[0] if self.sample == "bar" else SAMPLE) * style.scale()
        return own + sum(gap + style.text_width(text, size) for text in (self.text, self.after) if text)


def key_of(curves: Mapping[str, Curves], shown: Sequence[Column], seeds: int) -> list[Item]:
    """What needs to be told of the lines that are drawn."""
    several = [found for found in curves.values() if len(found.drawn) > 1]
    items = []
    if several:
        ends = {tuple(found.drawn["layer"].iloc[[0, -1]]) for found in several}
        names = [style.short(name) for name in next(iter(ends))] if len(ends) == 1 else ["first layer", "last layer"]
        items.append(Item("bar", *names))
    marked = {mark for found in curves.values() for mark in Mark for one in shown if found.marked(one, mark)}
    items += [Item("heavy", "violated")] if Mark.VIOLATED in marked else []
    items += [Item("dashed", "a slope by design")] if Mark.DESIGN in marked else []
    items += [Item("band", "range of the seeds")] if seeds > 1 else []
    items += [Item("cross", "not finite")] if any(len(found.lost) for found in curves.values()) else []
    return items


def key_rows(items: Sequence[Item], inches: float) -> list[list[Item]]:
    """The entries in lines that are no wider than so many inches."""
    rows: list[list[Item]] = []
    for item in items:
        gap = GAP * style.scale()
        if rows and sum(one.width + gap for one in rows[-1]) + item.width <= inches:
            rows[-1].append(item)
        else:
            rows.append([item])
    return rows


def draw_key(figure: Figure, rows: Sequence[Sequence[Item]], left: float) -> None:
    """The lines of the key at the figure's lower edge, from `left` inches on."""
    line = LINE * style.scale()
    for number, row in enumerate(reversed(rows)):
        x, y = left, (number + 0.6) * line
        for item in row:
            _draw(figure, item, x, y)
            x += item.width + GAP * style.scale()


def _draw(figure: Figure, item: Item, x: float, y: float) -> None:
    scale, gap = style.scale(), 0.05 * style.scale()
    size = style.size(style.SMALL)

    def write(text: str, at: float) -> float:
        place: Any = {"transform": figure.dpi_scale_trans, "va": "center", "fontsize": size, "color": style.ink(0.75)}
        figure.text(at, y, text, **place)
        return at + style.text_width(text, size) + gap

    if item.sample == "bar":
        x = write(item.text, x)
        width, height = figure.get_size_inches()
        corner = x / width, (y - BAR[1] * scale / 2) / height
        bar = figure.add_axes((*corner, BAR[0] * scale / width, BAR[1] * scale / height))
        bar.imshow(np.array(style.shades(64))[None], aspect="auto", interpolation="nearest")
        bar.set_axis_off()
        bar.set_label("key")
        write(item.after, x + BAR[0] * scale + gap)
        return
    SAMPLES[item.sample](figure, x, y)
    write(item.text, x + SAMPLE * scale + gap)


def _line(figure: Figure, x: float, y: float, **look: Any) -> None:
    ends = [x, x + SAMPLE * style.scale()]
    usual: dict[str, Any] = {"color": style.ink(), "linewidth": LIGHT, "transform": figure.dpi_scale_trans}
    figure.add_artist(Line2D(ends, [y, y], **(usual | look)))


SAMPLES: dict[str, Callable[[Figure, float, float], None]] = {
    "heavy": lambda figure, x, y: _line(figure, x, y, linewidth=HEAVY),
    "dashed": lambda figure, x, y: _line(figure, x, y, linestyle=DASHED, linewidth=1.0),
    "band": lambda figure, x, y: _line(figure, x, y, linewidth=5.0, color=style.ink(0.2), solid_capstyle="butt"),
    "cross": lambda figure, x, y: _line(figure, x, y, linestyle="none", marker="x", markersize=4, markevery=[0]),
}
