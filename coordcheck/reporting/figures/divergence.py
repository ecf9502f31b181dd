"""Figure 1: what verdicts are read from, against the width: the SP-versus-µP figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import coordcheck.reporting.figures.style as style
from coordcheck.analysis.designs import by_design
from coordcheck.analysis.measurements import judged
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import legible, printable
from coordcheck.reporting.figures.curves import (
    LEADER,
    Curves,
    draw_curves,
    ends_named,
    fall_lines,
    name_lines,
    named_lines,
    wedge,
    write_falls,
)
from coordcheck.reporting.figures.keys import LINE as KEY_LINE
from coordcheck.reporting.figures.keys import draw_key, key_of, key_rows
from coordcheck.reporting.figures.panels import LEFT, LINE, Layout, finish_axes, place_axes
from coordcheck.reporting.figures.style import NAME_LENGTH, QUANTITY_NAMES, own_style
from coordcheck.reporting.figures.views import MOST_COLUMNS, Column, View, columns
from coordcheck.reporting.summaries import headline
from coordcheck.runs.repeats import starred
from coordcheck.runs.words import Quantity, Status

HEIGHT, NARROWEST, WIDEST = 1.22, 0.8, 1.7  # inches: of a panel, and its width at least and at most
PAGE = {1: 7.2, 2: 10.0}  # inches: the figure's width, by how many labels stand in a row
LEAST = 0.35  # inches, below which a panel shows nothing
IN_A_COLUMN = 4  # labels; more stand in two columns, with fewer steps each
FEW_COLUMNS = 3
MAX_LINES = 28  # per panel; beyond it, only the worst of each group of repeated layers is drawn


class Title(NamedTuple):
    """What stands above a label's panels."""

    label: str
    word: str
    indent: float
    """Where the headline starts, in inches, in the line of the label and the word."""
    lines: list[str]


def draw_divergence(report: Result, view: View | None = None) -> Figure:
    """The scale at t = 0 and the change after it, against the width: a row of panels per label.

    A line is a layer, the mean over its seeds with their range, coloured by depth. It is heavy where its slope is
    beyond the tolerance in a layer that is violated, and dashed where its slope is another than 0 by design, as a
    readout's at t = 0; the worst of the one and the first of the other are named. All panels share their widths, those
    of a kind their scales, and an octave is as high in all. A wedge shows slopes of 1/2 and 1.

    Raises:
        CoordCheckError: a quantity or a step that was not measured, a glob that matches no layer, or a size that leaves
            no room for the panels.
    """
    view = view or View()
    shown = columns(report, view, FEW_COLUMNS if len(report.labels) > IN_A_COLUMN else MOST_COLUMNS)
    with own_style():
        layers = report.layers[view.named(report.layers["layer"])].sort_values("order", kind="stable")
        curves = {label: _curves(report, label, layers[layers["label"] == label], shown) for label in report.labels}
        names = {label: named_lines(found, shown) for label, found in curves.items()}
        if any(names.values()):  # then there is room at the right of the others, too
            names = {label: found or ends_named(curves[label]) for label, found in names.items()}
        items = key_of(curves, shown, report.measurements["seed"].nunique())
        layout, titles = _arranged(report, view, (shown, curves, names))
        rows = key_rows(items, layout.size[0] - 0.1)
        layout = _sized(replace(layout, foot=len(rows) * KEY_LINE * layout.scale), view, len(shown))
        figure = Figure(figsize=layout.size)
        axes = place_axes(figure, layout, len(curves))
        for row, found in zip(axes, curves.values(), strict=True):
            for axis, column in zip(row, shown, strict=True):
                draw_curves(axis, found, column)
        verticals = [QUANTITY_NAMES[column.quantity] for column in shown]
        falls = [
            fall_lines(found, layout.panel[0]) if shown[0] == (Quantity.ACTIVATION, 0) else []
            for found in curves.values()
        ]
        below = max(map(len, falls))
        finish_axes(axes, layout, report.widths, (legible(report.criteria.axis, NAME_LENGTH), verticals, below))
        for number, (row, label) in enumerate(zip(axes, curves, strict=True)):
            _write_titles(figure, layout, number, (titles[label], shown))
            if falls[number]:
                write_falls(row[0], falls[number])
            if number == 0:
                wedged = min(layout.groups[0], len(shown) - 1)  # the first change, where there is one
                wedge(row[wedged], report.widths, low=wedged > 0 or not below)
            name_lines(row[-1], names[label], curves[label])
        draw_key(figure, rows, 0.08 * layout.scale)
    return figure


def _curves(report: Result, label: str, rows: pd.DataFrame, shown: Sequence[Column]) -> Curves:
    """One label's lines: which of these layers, in which colours, and their points."""
    drawn = _worst(rows)
    drawn = drawn.assign(colour=pd.Series(style.shades(len(drawn)), index=drawn.index, dtype=object))
    table = judged(report.measurements)
    table = table[(table["label"] == label) & table["layer"].isin(drawn["layer"])]
    wanted = pd.MultiIndex.from_tuples([(column.quantity.value, column.step) for column in shown])
    table = table[pd.MultiIndex.from_frame(table[["quantity", "step"]]).isin(wanted)]
    table = table.assign(log=np.log2(table["value"].where(table["status"] == Status.OK.value)))
    logs = table.dropna(subset="log").groupby(["quantity", "step", "layer", "width"])["log"]
    points = logs.agg(["mean", "min", "max"]).rename(columns={"min": "low", "max": "high"}).reset_index()
    lost = table[table["status"].isin([Status.NAN.value, Status.INF.value])]
    marks = report.marks[report.marks["label"] == label]
    falls = [fall for fall in by_design(report, label) if fall.layer in set(drawn["layer"])]
    return Curves(drawn, points, lost, marks[marks["layer"].isin(drawn["layer"])], falls, len(rows))


def _worst(rows: pd.DataFrame) -> pd.DataFrame:
    """The layers to draw, in data-flow order: all, or the worst of each group of repeats."""
    if len(rows) <= MAX_LINES:
        return rows
    groups = rows["layer"].map(starred)
    # what left the numbers is worst of all, then what is violated, then the distance from the expected slope
    words = rows["verdict"].map(Verdict)
    badness = (rows["slope"] - rows["expected"]).abs().fillna(0.0).clip(upper=10.0)
    badness += 100.0 * words.map(lambda word: word.violated) + 1000.0 * (words == Verdict.NOT_FINITE)
    ranks = badness.groupby(groups, sort=False).rank(ascending=False, method="first")
    kept = badness[ranks <= max(1, MAX_LINES // groups.nunique())]
    return rows.loc[kept.nlargest(MAX_LINES).index].sort_values("order", kind="stable")


def _arranged(
    report: Result,
    view: View,
    content: tuple[Sequence[Column], Mapping[str, Curves], Mapping[str, Sequence[tuple[str, str]]]],
) -> tuple[Layout, dict[str, Title]]:
    """Room for what stands around the panels, and the titles, in lines that fit; the key's is not known yet."""
    (shown, curves, names), scale = content, style.scale()
    across = 1 if len(curves) <= IN_A_COLUMN else 2
    size = style.size(style.SMALL)
    widest = max((style.text_width(text, size) for found in names.values() for _, text in found), default=0.0)
    scales = sum(column.quantity is not Quantity.CHANGE for column in shown)
    layout = Layout(
        scale,
        across,
        rows=-(-len(curves) // across),
        groups=(scales, len(shown) - scales),
        margin=widest + (LEADER + 0.08) * scale if widest else 0.1 * scale,
        header=0.0,
        foot=0.0,
        panel=(0.0, 0.0),
    )
    layout = _sized(layout, view, len(shown), check=False)
    titles = {label: _title(report, label, found, layout) for label, found in curves.items()}
    lines = max(len(title.lines) for title in titles.values())
    return replace(layout, header=scale * (lines * LINE + 0.12)), titles


def _sized(layout: Layout, view: View, count: int, check: bool = True) -> Layout:
    """The panels as large as the figure lets them be.

    Raises:
        CoordCheckError: that is too small.
    """
    each = layout.across * count
    if view.figsize is None:
        wide = (PAGE[layout.across] * layout.scale / layout.across - layout.beside) / count
        wide = min(max(wide, NARROWEST * layout.scale), WIDEST * layout.scale)
        return replace(layout, panel=(wide, HEIGHT * layout.scale))
    beside = layout.across * layout.beside
    panel = (view.figsize[0] - beside) / each, (view.figsize[1] - layout.between) / layout.rows
    if check and min(panel) < LEAST:
        least = beside + each * 2 * LEAST, layout.between + layout.rows * 2 * LEAST
        raise CoordCheckError(
            f"figsize={view.figsize} inches leaves no room for {count} panels beside their texts. "
            f"Give figsize=({math.ceil(least[0])}, {math.ceil(least[1])}) or more, or fewer steps."
        )
    return replace(layout, panel=panel)


def _title(report: Result, label: str, curves: Curves, layout: Layout) -> Title:
    """A label's headline in lines as wide as its panels."""
    line, room = headline(report, label), layout.block - 0.05
    drawn = len(curves.drawn)
    some = f"; {drawn} of {curves.layers} lines drawn: the worst of each kind" if drawn < curves.layers else ""
    word = "" if label in report.too_few_widths else line.word
    name = style.shortened(legible(label), style.size(style.LARGE), room / 2)
    gap = 0.09 * layout.scale
    indent = style.text_width(name, style.size(style.LARGE), "bold") + gap
    indent += style.text_width(word, style.size(7.5), "bold") + gap if word else 0.0
    text = style.minus(printable(line.brief + some))
    return Title(name, word, indent, style.wrapped(text, style.size(7.5), room - 0.1, first=room - indent - 0.1))


def _write_titles(figure: Figure, layout: Layout, number: int, content: tuple[Title, Sequence[Column]]) -> None:
    """A label's title above its panels, and above the uppermost labels the steps."""
    title, shown = content
    x, y = layout.corner(number, 0)
    left, scale = x - (LEFT - 0.08) * layout.scale, layout.scale
    base = y + layout.panel[1] + scale * (0.09 + LINE * (len(title.lines) - 1))
    inches = figure.dpi_scale_trans
    figure.text(left, base, title.label, transform=inches, fontsize=style.size(style.LARGE), fontweight="bold")
    if title.word:
        at = left + style.text_width(title.label, style.size(style.LARGE), "bold") + 0.09 * scale
        figure.text(at, base, title.word, transform=inches, fontweight="bold")
    for line, text in enumerate(title.lines):
        at = left + title.indent if line == 0 else left
        figure.text(at, base - line * LINE * scale, text, transform=inches, color=style.ink(0.75))
    if number < layout.across:
        for place, column in enumerate(shown):
            x, y = layout.corner(number, place)
            name = f"t = {column.step}" + (" (init)" if column.step == 0 else "")
            top = y + layout.panel[1] + layout.header + 0.03 * scale
            figure.text(x + layout.panel[0] / 2, top, name, transform=inches, ha="center")
