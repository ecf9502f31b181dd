"""The figure of a learning-rate sweep: final loss against learning rate, one line per width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from coordcheck.analysis.optima import Optimum
from coordcheck.common.escaping import legible
from coordcheck.reporting.figures.style import NAME_LENGTH, minus, own_style, shades

PANEL = (1.75, 1.75)  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.5, 0.55, 0.42, 0.4  # inches
COLUMNS = 4
HEADROOM = 1.0  # nats above the least loss that the vertical axis shows at most
FITTED = "fitted best"  # in the key
MARGIN = 0.06  # of the losses shown


def draw_transfer(losses: pd.DataFrame, optima: pd.DataFrame, shift: pd.DataFrame) -> Figure:
    """Final loss against log2 of the learning rate: a panel per label, a line per width, a band over the seeds.

    A diamond marks each fitted optimum with its 95 % interval, at the height of the least loss that was measured; an
    arrow a best learning rate at the edge; a cross, at the top, a learning rate at which a run did not finish. All
    panels share their axes; losses far above the least are cut off.

    Args:
        losses: one row per run, `label, width, lr, seed, loss, status`.
        optima: one row per label and width, as `optima.find_optima` makes it.
        shift: one row per label, likewise.
    """
    labels = list(dict.fromkeys(losses["label"]))
    columns = min(len(labels), COLUMNS)
    rows = -(-len(labels) // columns)
    with own_style():
        width, height = LEFT + columns * PANEL[0] + RIGHT, BOTTOM + rows * (PANEL[1] + TOP)
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=LEFT / width,
            right=1 - RIGHT / width,
            bottom=BOTTOM / height,
            top=1 - TOP / height,
            wspace=0.08,
            hspace=(TOP + 0.05) / PANEL[1],
        )
        for axis, label in zip(axes.flat, labels, strict=False):
            of_label, found, moved = (table[table["label"] == label] for table in (losses, optima, shift))
            panel(axis, of_label, found, moved, losses["loss"].dropna())
        for axis in axes.flat[len(labels) :]:
            axis.set_axis_off()
        for row in axes:
            row[0].set_ylabel("final loss")
        for column in range(columns):
            last = max(row for row in range(rows) if row * columns + column < len(labels))
            axes[last, column].set_xlabel("log2 learning rate")
            axes[last, column].tick_params(labelbottom=True)
        name_widths(axes.flat[columns - 1 if len(labels) >= columns else len(labels) - 1])
    return figure


def panel(axis: Axes, losses: pd.DataFrame, optima: pd.DataFrame, shift: pd.DataFrame, everything: pd.Series) -> None:
    """One label: its lines, bands and optima, and the shift in the title; the axis shows what all labels need."""
    optima = optima.set_index("width")
    widths = sorted(losses["width"].unique())
    for width, colour in zip(widths, shades(len(widths)), strict=True):
        _line(axis, losses[losses["width"] == width], colour)
        _mark(axis, optima.loc[width], colour)
    low, high = everything.min(), min(everything.max(), everything.min() + HEADROOM)
    axis.set_ylim(low - MARGIN * (high - low), high + MARGIN * (high - low))
    axis.xaxis.set_major_locator(MultipleLocator(2))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: minus(f"{value:g}")))
    moved = shift.iloc[0]
    axis.set_title(legible(moved["label"], NAME_LENGTH), loc="left", fontweight="bold", fontsize=8.5, pad=12)
    axis.text(0, 1.02, shift_text(moved), transform=axis.transAxes, va="bottom", fontsize=6.5, color="0.25")


def shift_text(shift: Any) -> str:
    """The shift in a few words, in octaves with half of its 95 % interval: `moves: −0.93 ± 0.08 per doubling`."""
    if not np.isfinite(shift["shift"]):
        return f"{shift['status']}"
    error = f" ± {(shift['high'] - shift['low']) / 2:.2f}" if np.isfinite(shift["stderr"]) else ""
    moved = minus(f"{shift['shift']:+.2f}")
    return f"{shift['status']}: {moved}{error} per doubling"


def _line(axis: Axes, losses: pd.DataFrame, colour: Any) -> None:
    """The mean over the seeds that finished, and their range."""
    seeds = losses.groupby("lr")["loss"]
    whole = seeds.count() == losses.groupby("lr").size()
    x, mean = np.log2(seeds.mean().index.to_numpy(dtype=float)), seeds.mean().where(whole)
    width = losses["width"].iloc[0]
    axis.plot(x, mean, "o-", color=colour, linewidth=1.1, markersize=2.2, label=f"{width}")
    axis.fill_between(x, seeds.min().where(whole), seeds.max().where(whole), color=colour, alpha=0.18, linewidth=0)
    lost = x[~whole.to_numpy()]
    axis.plot(lost, [0.97] * len(lost), "x", color=colour, markersize=3, transform=axis.get_xaxis_transform())


def _mark(axis: Axes, optimum: Any, colour: Any) -> None:
    """The fitted optimum with its interval, open; a best learning rate at the edge is an arrow that points beyond it.

    It stands at the loss of the best learning rate that was tried: the curve's own least loss was measured by nobody.
    """
    if optimum["status"] == Optimum.FOUND.value:
        half = optimum["high"] - optimum["log2_lr"]
        at, bar = (optimum["log2_lr"], optimum["best_loss"]), half if np.isfinite(half) else None
        style: Any = {"markersize": 4.2, "elinewidth": 1, "capsize": 1.5, "markeredgecolor": colour}
        axis.errorbar(*at, xerr=bar, fmt="D", color=colour, markerfacecolor="white", zorder=4, label=FITTED, **style)
    elif optimum["status"] == Optimum.EDGE.value:
        line = next(line for line in axis.lines if line.get_label() == f"{optimum.name}")
        x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
        marker = "<" if np.log2(optimum["best"]) == x[0] else ">"
        axis.plot(np.log2(optimum["best"]), np.nanmin(y), marker, color=colour, markeredgecolor="black", zorder=4)


def name_widths(axis: Axes) -> None:
    """The widths, in the order of their lines, beside the last panel; and below them what the diamonds are."""
    found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    fitted = found.pop(FITTED, None)
    style: Any = {"loc": "upper left", "frameon": False, "handlelength": 1.2, "fontsize": 7, "title_fontsize": 7}
    named = axis.legend(found.values(), found.keys(), title="width", bbox_to_anchor=(1.0, 1.0), **style)
    if fitted is not None:
        diamond = Line2D([], [], marker="D", linestyle="", color="0.3", markerfacecolor="white", markersize=4.2)
        axis.add_artist(named)  # a second key takes the place of the first
        axis.legend([diamond], ["fitted\nbest"], bbox_to_anchor=(1.0, 0.28), **style)
