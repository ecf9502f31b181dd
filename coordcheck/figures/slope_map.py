"""Figure 2: the slopes as a map, layers by steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.escaping import legible
from coordcheck.figures.style import NAME_LENGTH, QUANTITY_NAMES, own_style, rows_of
from coordcheck.records import Quantity
from coordcheck.verdicts import Verdict

if TYPE_CHECKING:
    from coordcheck.report import Report

CELL = (0.42, 0.155)  # inches
MIN_ROWS = 12  # of height, so that the colour bar's label fits
LIMIT = 3.0  # of the colours; beyond it a number says more
NUMBERED_ROWS = 60  # up to which each cell tells its slope


def draw_slope_map(report: Report, quantity: Quantity = Quantity.CHANGE) -> Figure:
    """The slopes as a map, layers by steps, a panel per label.

    A dot marks the slopes beyond the tolerance, with their whole 95 % interval, in layers that are violated.
    """
    slopes = rows_of(report.slopes, quantity)
    expected = report.layers.set_index(["label", "layer"])["expected"].rename("aim").fillna(0.0)
    slopes = slopes.join(expected, on=["label", "layer"])
    slopes["slope"] -= slopes["aim"].fillna(0.0)
    shifted = set(slopes.loc[slopes["aim"].fillna(0.0) != 0, "layer"])
    steps = sorted(slopes["step"].unique())
    layers = list(dict.fromkeys(slopes.sort_values("order")["layer"]))
    names = [legible(layer, NAME_LENGTH) + (" †" if layer in shifted else "") for layer in layers]
    largest = slopes["slope"].abs().max()
    limit = min(max(1.0, np.ceil(2 * largest) / 2), LIMIT) if np.isfinite(largest) else 1.0
    with own_style(), mpl.rc_context({"axes.grid": False}):
        left, right = 0.075 * max(map(len, names), default=1) + 0.3, 1.05
        width = left + len(report.labels) * (len(steps) * CELL[0] + 0.15) + right
        height = 0.75 + max(len(layers), MIN_ROWS) * CELL[1]
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, len(report.labels), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(
            left=left / width, right=1 - right / width, bottom=0.4 / height, top=1 - 0.35 / height, wspace=0.08
        )
        for axis, label in zip(axes, report.labels, strict=True):
            image = _panel(axis, slopes[slopes["label"] == label], layers, steps, limit)
            _mark(axis, slopes[slopes["label"] == label], layers, steps, report)
            axis.set_title(legible(label, NAME_LENGTH), fontweight="bold", fontsize=9)
        axes[0].set_yticks(range(len(layers)), names)
        box = axes[-1].get_position()
        bar = figure.colorbar(image, cax=figure.add_axes((box.x1 + 0.12 / width, box.y0, 0.09 / width, box.height)))
        bar.set_label(f"slope of\n{QUANTITY_NAMES[quantity]}")
        bar.outline.set_visible(False)
        if shifted:
            figure.text(0.01, 0.02, "† less the exponent it should have", fontsize=6.5, color="0.35")
    return figure


def _panel(axis: Axes, slopes: pd.DataFrame, layers: list[str], steps: list[int], limit: float) -> Any:
    """One label: the colours, and the numbers while there is room for them."""
    grid = slopes.pivot(index="layer", columns="step", values="slope").reindex(index=layers, columns=steps)
    values = grid.to_numpy(dtype=float)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    if len(layers) <= NUMBERED_ROWS:
        for (row, column), slope in np.ndenumerate(values):
            if np.isfinite(slope):
                shade = "white" if abs(slope) > 0.65 * limit else "0.15"
                place = {"ha": "center", "va": "center", "fontsize": 5.5}
                axis.text(column - 0.06, row, f"{slope:+.2f}", color=shade, **place)  # type: ignore[arg-type]  # by name
    axis.set_xticks(range(len(steps)), [f"t={step}" for step in steps])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _mark(axis: Axes, slopes: pd.DataFrame, layers: list[str], steps: list[int], report: Report) -> None:
    """A dot in each cell that shows what its layer's verdict says."""
    verdicts = report.layers.set_index(["label", "layer"])[["verdict", "expected"]]
    cells = slopes.join(verdicts, on=["label", "layer"])
    cells = cells[cells["verdict"].map(lambda word: Verdict(word).violated).astype(bool)]
    tolerance = report.criteria.tolerance
    beyond = (cells["low"] - cells["expected"] > tolerance) | (cells["high"] - cells["expected"] < -tolerance)
    columns = [steps.index(step) + 0.4 for step in cells.loc[beyond, "step"]]
    rows = [layers.index(layer) - 0.28 for layer in cells.loc[beyond, "layer"]]
    if columns:
        axis.plot(columns, rows, "o", color="black", markersize=1.8)
