"""The lines of one label, their names, and the wedge that they are read against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

import coordcheck.reporting.figures.style as style
from coordcheck.analysis.designs import Design
from coordcheck.analysis.marks import Mark
from coordcheck.analysis.verdicts import Verdict
from coordcheck.reporting.figures.views import Column

HEAVY, LIGHT = 1.5, 0.7  # points, of lines
DASHED = (0, (4, 2))  # of slopes by design
NAMED = 5  # violated lines named at the right edge of a label
LOST = 0.96  # of a panel's height: where crosses stand, and the names of lines that have no end
LEADER = 0.14  # inches between a panel and the names beside it
DESIGNS = 2  # slopes by design that are named in a panel
MIN_APART = 0.09  # inches between the names of the wedge's two slopes


class Curves(NamedTuple):
    """What is drawn of one label."""

    drawn: pd.DataFrame
    """Its layers in data-flow order: rows of `report.layers` with a `colour`."""
    points: pd.DataFrame
    """Columns quantity, step, layer, width, and the mean, lowest and highest log2 over the seeds."""
    lost: pd.DataFrame
    """Columns quantity, step, layer, width: where a run left the numbers."""
    marks: pd.DataFrame
    """`report.marks` of these layers."""
    falls: list[Design]
    """Slopes at t = 0 by design."""
    layers: int
    """How many there are, of which `drawn` are the worst."""

    @property
    def colours(self) -> dict[str, tuple[float, ...]]:
        """Of each layer that is drawn, in data-flow order."""
        return dict(zip(self.drawn["layer"], self.drawn["colour"], strict=True))

    def at(self, column: Column) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The points and the losses of one panel."""
        return _at(self.points, column), _at(self.lost, column)

    def marked(self, column: Column, mark: Mark) -> set[str]:
        """The layers that bear this mark in a panel."""
        rows = _at(self.marks, column)
        return set(rows.loc[rows["mark"] == mark.value, "layer"])


def _at(table: pd.DataFrame, column: Column) -> pd.DataFrame:
    return table[(table["quantity"] == column.quantity.value) & (table["step"] == column.step)]


def draw_curves(axis: Axes, curves: Curves, column: Column) -> None:
    """One panel: per layer a line, the mean over the seeds, and a band, their range; a cross where a run was lost."""
    points, lost = curves.at(column)
    heavy, dashed = curves.marked(column, Mark.VIOLATED), curves.marked(column, Mark.DESIGN)
    by_layer = dict(tuple(points.groupby("layer", sort=False)))
    for layer, colour in curves.colours.items():
        if layer not in by_layer:
            continue
        rows, bad = by_layer[layer], layer in heavy
        axis.plot(
            rows["width"],
            np.exp2(rows["mean"]),
            linestyle=DASHED if layer in dashed else "-",
            marker=".",
            markersize=3.0 if bad else 2.0,
            color=colour,
            linewidth=HEAVY if bad else LIGHT,
            label=layer,
            zorder=3 if bad else 2,
        )
        axis.fill_between(rows["width"], np.exp2(rows["low"]), np.exp2(rows["high"]), color=colour, alpha=0.15, lw=0)
    for width in lost["width"].unique():  # at the upper edge: where a run left the numbers
        place: Any = {"transform": axis.get_xaxis_transform(), "zorder": 4}
        axis.plot(width, LOST, "x", color=style.ink(), markersize=4, **place)


def line_of(axis: Axes, layer: str) -> Line2D | None:
    """A layer's line in a panel."""
    return next((line for line in axis.lines if line.get_label() == layer and line.get_zorder() > 1), None)


def named_lines(curves: Curves, shown: Sequence[Column]) -> list[tuple[str, str]]:
    """The layers to name at the right of a label, with what is said of each: the worst, and what is so by design."""
    marks = pd.concat([_at(curves.marks, column) for column in shown])
    drawn = curves.drawn.set_index("layer")
    bad = marks[marks["mark"] == Mark.VIOLATED.value]
    steps = bad.groupby("layer")["step"].max()
    worst = drawn[drawn["verdict"].map(lambda word: Verdict(word).violated).astype(bool)]
    distance = (worst["slope"] - worst["expected"]).abs().fillna(math.inf).sort_values(ascending=False, kind="stable")
    found = []
    for layer in distance.index[:NAMED]:
        only = " (t = 0)" if steps.get(layer, -1) == 0 and len(shown) > 1 else ""
        found.append((str(layer), style.short(str(layer)) + only))
    last = shown[-1]
    if last.step:
        rows = _at(marks[marks["mark"] == Mark.DESIGN.value], last).sort_values("order", kind="stable")
        rows = rows[~rows["layer"].isin([name for name, _ in found])].head(DESIGNS)
        for layer, exponent in zip(rows["layer"], rows["exponent"], strict=True):
            found.append((layer, f"{style.short(layer)}: {style.power(exponent)} by design"))
    return found


def ends_named(curves: Curves) -> list[tuple[str, str]]:
    """The first and the last layer, which tell what the colours mean where nothing else is named."""
    layers = [str(layer) for layer in curves.drawn["layer"]]
    return [(layer, style.short(layer)) for layer in dict.fromkeys([*layers[:1], *layers[-1:]])]


def name_lines(axis: Axes, names: Sequence[tuple[str, str]], curves: Curves) -> None:
    """Names at the right of the last panel, each at the end of its line, spread so that no two touch."""
    low, high = np.log2(axis.get_ylim())
    width, height = _inches(axis)
    size = style.size(style.SMALL)
    gap = 1.25 * size / 72 / height
    ends = []
    for layer, text in names[: max(1, int(1 / gap))]:
        line = line_of(axis, layer)
        end = None if line is None else np.asarray(line.get_xydata(), dtype=float)[-1]
        if end is not None and end[0] < curves.points["width"].max():  # the last point of a line that broke off
            end = None
        ends.append((LOST if end is None else float((np.log2(end[1]) - low) / (high - low)), layer, text, end))
    ends.sort(key=lambda end: end[0])
    colours, x = curves.colours, 1 + LEADER * style.scale() / width
    for (_, layer, text, end), y in zip(ends, _spread([end[0] for end in ends], gap), strict=True):
        look: dict[str, Any] = {"color": colours[layer], "fontsize": size, "va": "center", "annotation_clip": False}
        if end is None:  # it has no point here: it never moved, or left the numbers
            axis.annotate(text, (x, y), xycoords="axes fraction", **look)
            continue
        leader = {"arrowstyle": "-", "linewidth": 0.5, "color": colours[layer], "relpos": (0, 0.5), "shrinkA": 0.5}
        axis.annotate(text, end, (x, y), textcoords="axes fraction", arrowprops={**leader, "shrinkB": 0.5}, **look)


def _inches(axis: Axes) -> tuple[float, float]:
    """Width and height of a panel."""
    box = axis.get_position()
    width, height = axis.figure.get_size_inches()  # type: ignore[union-attr]  # there are no figures inside figures here
    return float(box.width * width), float(box.height * height)


def fall_lines(curves: Curves, inches: float) -> list[str]:
    """What is not flat at t = 0 by design, in lines of text for a panel of so many inches."""
    powers: dict[float, list[str]] = {}
    for fall in curves.falls:
        powers.setdefault(fall.exponent, []).append(fall.layer)
    size, room, lines = style.size(style.SMALL), inches - 0.1 * style.scale(), list[str]()
    for exponent, layers in list(powers.items())[:DESIGNS]:
        what = style.short(layers[0]) if len(layers) == 1 else f"{len(layers)} layers"
        one = f"{what}: {style.power(exponent)} by design"
        fits = style.text_width(one, size) <= room
        lines += [one] if fits else [style.shortened(f"{what}:", size, room), f"{style.power(exponent)} by design"]
    return lines


def write_falls(axis: Axes, lines: Sequence[str]) -> None:
    """Name in the room that a panel of t = 0 has at its lower edge what is not flat there by design."""
    look: dict[str, Any] = {"va": "bottom", "color": style.ink(0.7), "fontsize": style.size(style.SMALL)}
    axis.text(0.05, 0.03, "\n".join(lines), transform=axis.transAxes, linespacing=1.1, **look)


def _crowd(axis: Axes, corner: str, wide: float, tall: float) -> int:
    """How many points of lines lie in a corner of a panel, whose size is a fraction of the panel's."""
    inside = 0
    for line in axis.lines:
        data = np.asarray(line.get_xydata(), dtype=float)
        data = data[np.isfinite(data).all(axis=1) & (data > 0).all(axis=1)]
        if not len(data):
            continue
        x, y = np.log2(data).T  # denser than the points: a line between two of them crosses the corner, too
        steps = np.linspace(x[0], x[-1], 16)
        (left, right), (low, high) = np.log2(axis.get_xlim()), np.log2(axis.get_ylim())
        across, up = (steps - left) / (right - left), (np.interp(steps, x, y) - low) / (high - low)
        within = up < tall if corner == "lower" else up > 1 - tall
        inside += int((within & (across < wide)).sum())
    return inside


def wedge(axis: Axes, widths: Sequence[int], *, low: bool) -> None:
    """A reference wedge of slopes 1/2 and 1 at a panel's left edge, above or below, where fewer lines run.

    Args:
        axis: the panel.
        widths: all of them, ascending.
        low: whether it may stand at the lower edge.
    """
    bottom, top = np.log2(axis.get_ylim())
    start, end = widths[0], widths[0] * (widths[-1] / widths[0]) ** 0.36
    rise, margin = np.log2(end / start), 0.06 * (top - bottom)
    if rise < 0.04 * (top - bottom) or rise + 2 * margin > top - bottom:  # nothing to see, or no room for it
        return
    tall = (rise + 2 * margin) / (top - bottom)
    crowds = {corner: _crowd(axis, corner, 0.5, tall) for corner in ("upper", "lower")[: 1 + low]}
    base = 2.0 ** (bottom + margin if min(crowds, key=crowds.__getitem__) == "lower" else top - rise - margin)
    tips = base * 2 ** np.array([0, rise])
    axis.fill_between([start, end], [base, base * 2 ** (rise / 2)], tips, color=style.ink(0.15), linewidth=0, zorder=1)
    apart = rise / 2 / (top - bottom) * _inches(axis)[1]  # inches between the tips
    look: dict[str, Any] = {"va": "center", "color": style.ink(0.6), "fontsize": style.size(style.SMALL)}
    for exponent, text in ((0.5, "½" if apart > MIN_APART * style.scale() else ""), (1.0, "slope 1")):
        tip = base * 2 ** (rise * exponent)
        axis.plot([start, end], [base, tip], color=style.ink(0.4), linewidth=0.7, zorder=1)
        axis.annotate(text, (end, tip), (2, 0), textcoords="offset points", **look)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, as near to `heights` as a push up and a push down leave them.

    >>> _spread([0.0, 0.0, 1.0], gap=0.25)
    [0.0, 0.25, 1.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = 1.0 + gap / 2
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
