"""Figure 2: the slopes as a map, layers by steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import coordcheck.reporting.figures.style as style
from coordcheck.analysis.marks import KEYS, Mark
from coordcheck.analysis.result import Result
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import legible
from coordcheck.reporting.figures.grids import Grid, Margins, names_width, write_notes
from coordcheck.reporting.figures.rows import Rows, rows_of
from coordcheck.reporting.figures.style import QUANTITY_NAMES, own_style
from coordcheck.reporting.figures.views import View, chosen_steps
from coordcheck.runs.words import Quantity

CELL = (0.42, 0.155)  # inches
MARGINS = Margins(top=0.32, bottom=0.29, right=0.95, apart=0.12)  # at the right is the bar of colours
MIN_WIDTH = 0.84  # inches, so that a title fits
MIN_ROWS = 12  # of height, so that the name of the bar of colours fits
PAGE = 10.0  # inches of width, beyond which labels go on in a new line
LIMIT = 3.0  # of the colours; beyond it a number says more


def draw_slope_map(report: Result, view: View | None = None) -> Figure:
    """The slopes less what is expected as a map, layers by steps, a panel per label.

    A dot marks the slopes beyond the tolerance, with their whole 95 % interval, in layers that are violated. Where
    there are many layers, those of repeated blocks share a row, which shows the one farthest from its exponent.

    Raises:
        CoordCheckError: a quantity or a step that was not measured, or a glob that matches no layer.
    """
    view = view or View()
    quantity = view.quantity or Quantity.CHANGE
    slopes = _slopes(report, quantity, view)
    steps = chosen_steps(report, sorted(map(int, slopes["step"].unique())), view)
    slopes = slopes[slopes["step"].isin(steps)]
    names = list(dict.fromkeys(slopes.sort_values("order", kind="stable")["layer"]))
    rows = rows_of(names, slopes.groupby("layer")["distance"].max().fillna(0.0).to_dict())
    slopes = _worst(slopes, rows)
    largest = slopes["slope"].abs().max()
    limit = min(max(1.0, np.ceil(2 * largest) / 2), LIMIT) if np.isfinite(largest) else 1.0
    shifted = {int(row) for row in slopes.loc[slopes["expected"] != 0, "row"]}
    texts = [text + (" †" if number in shifted else "") for number, text in enumerate(rows.texts)]
    notes = [f"{rows.note}; each shows the slope farthest from its exponent" if "share" in rows.note else rows.note]
    notes += ["† less the exponent it should have"] if shifted else []
    with own_style(), mpl.rc_context({"axes.grid": False}):
        grid = _grid(report.labels, texts, (len(steps), list(filter(None, notes))), view)
        figure = Figure(figsize=grid.size)
        for place, label in enumerate(report.labels):
            axis = figure.add_axes(grid.box(place))
            image = _panel(axis, slopes[slopes["label"] == label], (len(texts), steps, limit))
            title = style.shortened(legible(label), style.size(style.LARGE), _title_room(grid))
            axis.set_title(title, fontweight="bold", fontsize=style.size(style.LARGE), pad=4)
            axis.set_yticks(range(len(texts)), texts)
            axis.tick_params(labelleft=place % grid.across == 0)
        _bar(figure, image, grid, quantity)
        write_notes(figure, grid)
    return figure


def _grid(labels: Sequence[str], texts: Sequence[str], content: tuple[int, list[str]], view: View) -> Grid:
    """Room for everything: cells of one size, or as large as the figure lets them be.

    Raises:
        CoordCheckError: a size that leaves no room for the cells.
    """
    (steps, notes), scale, left = content, style.scale(), names_width(texts)
    panel = max(steps * CELL[0], MIN_WIDTH) * scale, max(len(texts), MIN_ROWS) * CELL[1] * scale
    room = (PAGE * scale if view.figsize is None else view.figsize[0]) - left - MARGINS.right * scale
    apart = MARGINS.apart * scale
    across = min(len(labels), max(1, int((room + apart) / (panel[0] + apart))))
    grid = Grid(scale, MARGINS, across, -(-len(labels) // across), left, panel).noted(notes)
    return grid.fitted(view, (steps * 0.1, len(texts) * 0.03), f"{len(texts)} rows of {steps} steps")


def _title_room(grid: Grid) -> float:
    """For a title, which is bold: a map alone has what is beside it, too."""
    alone = 2 * min(grid.left, MARGINS.right * grid.scale) - 0.1 if grid.across == 1 else 0.0
    return 0.85 * (grid.panel[0] + alone)


def _slopes(report: Result, quantity: Quantity, view: View) -> pd.DataFrame:
    """The slopes less what is expected, with a mark where they are violated.

    Raises:
        CoordCheckError: a quantity that was not measured, or a glob that matches no layer.
    """
    slopes = report.slopes[report.slopes["quantity"] == quantity.value]
    if slopes.empty:
        raise CoordCheckError(f"{quantity.value} was not measured, so it cannot be drawn (change needs steps >= 1).")
    slopes = slopes[view.named(slopes["layer"])]
    aims = report.layers[["label", "layer", "expected"]]
    slopes = slopes.merge(aims, on=["label", "layer"], how="left").fillna({"expected": 0.0})
    slopes["slope"] -= slopes["expected"]
    marks = report.marks[report.marks["mark"] == Mark.VIOLATED.value].set_index(KEYS).index
    slopes["violated"] = pd.MultiIndex.from_frame(slopes[KEYS]).isin(marks)
    return slopes.assign(distance=slopes["slope"].abs())


def _worst(slopes: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Of the layers that share a row, the one that is farthest off, per label and step; violated ones first."""
    slopes = slopes[slopes["layer"].isin(list(rows.place))]
    slopes = slopes.assign(row=slopes["layer"].map(rows.place))
    slopes = slopes.sort_values(["violated", "distance"], ascending=False, kind="stable", na_position="last")
    return slopes.drop_duplicates(["label", "row", "step"])


def _panel(axis: Axes, slopes: pd.DataFrame, shape: tuple[int, list[int], float]) -> Any:
    """One label: the colours, the numbers, and the dots where a slope is violated."""
    count, steps, limit = shape
    grid = slopes.pivot(index="row", columns="step", values="slope").reindex(index=range(count), columns=steps)
    values = grid.to_numpy(dtype=float)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    size = style.size(style.TINY)
    for (row, column), slope in np.ndenumerate(values):
        if np.isfinite(slope):
            shade = "white" if abs(slope) > 0.65 * limit else "0.15"
            text = style.minus(f"{round(slope, 2) + 0.0:+.2f}")
            axis.text(column - 0.06, row, text, color=shade, ha="center", va="center", fontsize=size)
    dots = slopes[slopes["violated"]]
    if len(dots):
        columns = [steps.index(step) + 0.4 for step in dots["step"]]
        axis.plot(columns, dots["row"] - 0.28, "o", color="black", markersize=1.8, linestyle="none")
    axis.set_xticks(range(len(steps)), [f"t={step}" for step in steps])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _bar(figure: Figure, image: Any, grid: Grid, quantity: Quantity) -> None:
    """The bar of colours beside the last map of the first line."""
    x, y, wide, high = grid.box(grid.across - 1)
    width, height = grid.size
    least = min(high, MIN_ROWS * CELL[1] * grid.scale / height)
    top = max(least, min(high, 3.4 * grid.scale / height))
    place = (x + wide + 0.12 * grid.scale / width, y + high - top, 0.09 * grid.scale / width, top)
    bar = figure.colorbar(image, cax=figure.add_axes(place))
    ticks = np.linspace(-image.norm.vmax, image.norm.vmax, 5)
    bar.set_ticks(list(ticks), labels=[style.minus(f"{tick:+g}" if tick else "0") for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label(f"slope of\n{QUANTITY_NAMES[quantity]}")
    bar.outline.set_visible(False)
