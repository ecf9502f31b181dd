"""Figure 1: scale against width, the SP-versus-µP figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import NDArray

from coordcheck.escaping import legible
from coordcheck.figures.style import NAME_LENGTH, QUANTITY_NAMES, own_style, rows_of
from coordcheck.measurements import judged
from coordcheck.records import Quantity, Status
from coordcheck.verdicts import Verdict, summary

if TYPE_CHECKING:
    from coordcheck.report import Report

PANEL = (1.08, 1.22)  # inches
LEFT, RIGHT, TOP, BOTTOM, HEADER = 0.6, 1.6, 0.2, 0.36, 0.26  # inches: margins, and the title above each row
UNNAMED = 0.1  # inches: the right margin when no line is named
MIN_OCTAVES = 4.0  # of the vertical axis
MAX_LINES = 28  # per panel; beyond it, only the worst of each group of repeated layers is drawn
MIN_APART = 0.09  # inches between the names of the wedge's two slopes
NAMED = 5  # lines named at the right edge of a row
COLOURS = "viridis"
DARKEST, LIGHTEST = 0.0, 0.82  # the part of the map that is readable on white, also in grey


def draw_divergence(report: Report, quantity: Quantity = Quantity.ACTIVATION) -> Figure:
    """Scale against width: a row per label, a column per step, a line per layer with the range of its seeds.

    All panels share their log2 axes. Layers are coloured by depth; violated ones are heavy, and the worst are
    named at the end of their line. The grey wedge shows slopes 1/2 and 1. A layer whose exponent should not be 0, such
    as a readout that a multiplier follows, is drawn without that exponent, dashed: flat is always right.
    """
    table = rows_of(judged(report.measurements), quantity)
    steps = sorted(table["step"].unique())
    with own_style():
        named = any(verdict.violated for verdict in report.status.values())
        figure, axes = _grid(len(report.labels), len(steps), RIGHT if named else UNNAMED)
        last_lines = []
        for row, label in zip(axes, report.labels, strict=True):
            verdicts = report.layers[report.layers["label"] == label]
            drawn = _drawn_layers(verdicts)
            rows = table[(table["label"] == label) & table["layer"].isin(drawn["layer"])]
            panels = [_panel(axis, rows[rows["step"] == step], drawn) for axis, step in zip(row, steps, strict=True)]
            last_lines.append(panels[-1])
            _row_title(row[0], label, report, verdicts, len(drawn))
        _finish_axes(figure, axes, report, steps, QUANTITY_NAMES[quantity])
        for row, label, lines in zip(axes, report.labels, last_lines, strict=True):
            _name_lines(row[-1], lines, report.layers[report.layers["label"] == label])
    return figure


def _grid(rows: int, columns: int, right: float) -> tuple[Figure, Any]:
    width = LEFT + columns * PANEL[0] + right
    height = TOP + rows * (PANEL[1] + HEADER) + BOTTOM
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={
            "left": LEFT / width,
            "right": 1 - right / width,
            "bottom": BOTTOM / height,
            "top": 1 - (TOP + HEADER) / height,
            "wspace": 0.08,
            "hspace": HEADER / PANEL[1] + 0.06,
        },
    )
    return figure, axes


def _drawn_layers(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The layers to draw, in data-flow order, with a colour by depth: all, or the worst of each group of repeats."""
    layers = verdicts.sort_values("order")
    if len(layers) > MAX_LINES:
        groups = layers["layer"].str.replace(r"\d+", "*", regex=True)
        # what left the numbers is worst of all, then what is violated, then the distance from the expected slope
        words = layers["verdict"].map(Verdict)
        badness = (layers["slope"] - layers["expected"]).abs().fillna(0.0).clip(upper=10.0)
        badness += 100.0 * words.map(lambda word: word.violated) + 1000.0 * (words == Verdict.NOT_FINITE)
        ranks = badness.groupby(groups, sort=False).rank(ascending=False, method="first")
        layers = layers[ranks <= max(1, MAX_LINES // groups.nunique())]
    shades = np.linspace(DARKEST, LIGHTEST, max(len(layers), 2))[: len(layers)]
    return layers.assign(colour=list(mpl.colormaps[COLOURS](shades)))


def _panel(axis: Axes, rows: pd.DataFrame, drawn: pd.DataFrame) -> dict[str, Line2D]:
    """One step of one label: a line and a band per layer; returns the lines by layer."""
    lines = {}
    logs = np.log2(rows["value"].where(rows["status"] == Status.OK.value))
    seeds = rows.assign(log=logs).groupby(["layer", "width"])["log"]
    statistics = pd.DataFrame({"mean": seeds.mean(), "low": seeds.min(), "high": seeds.max()})
    lost = rows[rows["status"].isin([Status.NAN.value, Status.INF.value])]
    expected, smallest = drawn["expected"].fillna(0.0), rows["width"].min()
    for layer, colour, word, power in zip(drawn["layer"], drawn["colour"], drawn["verdict"], expected, strict=True):
        if layer not in statistics.index.get_level_values(0):
            continue
        line = np.exp2(statistics.loc[layer])
        line = line.mul((line.index / smallest) ** -power, axis=0)
        violated = Verdict(word).violated
        (lines[layer],) = axis.plot(
            line.index,
            line["mean"],
            "-" if power == 0 else "--",
            color=colour,
            linewidth=1.4 if violated else 0.7,
            label=layer,
            zorder=3 if violated else 2,
        )
        axis.fill_between(line.index, line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
    for width in lost["width"].unique():  # at the upper edge: where a run left the numbers
        axis.plot(width, 0.96, "x", color="black", markersize=4, transform=axis.get_xaxis_transform(), zorder=4)
    return lines


def _row_title(axis: Axes, label: str, report: Report, verdicts: pd.DataFrame, drawn: int) -> None:
    """The label and its verdict above the first panel of a row."""
    words = [Verdict(word) for word in verdicts["verdict"]]
    verdict = "no verdict: too few widths" if label in report.too_few_widths else summary(words)
    if (verdicts["expected"].fillna(0.0) != 0).any():
        verdict += "; dashed: without the exponent it should have"
    if drawn < len(words):
        verdict += f" ({drawn} lines: the worst of repeated layers)"
    texts: list[Any] = [
        TextArea(legible(label, NAME_LENGTH), textprops={"fontsize": 9, "fontweight": "bold"}),
        TextArea(verdict, textprops={"color": "0.25"}),
    ]
    title = HPacker(children=texts, align="baseline", pad=0, sep=6)
    place: dict[str, Any] = {"bbox_to_anchor": (0, 1), "bbox_transform": axis.transAxes, "borderpad": 0.25}
    axis.add_artist(AnchoredOffsetbox("lower left", child=title, frameon=False, pad=0, **place))


def _finish_axes(figure: Figure, axes: NDArray[Any], report: Report, steps: Sequence[int], name: str) -> None:
    """Scales, ticks, step titles and the reference wedge, once all data are in."""
    first = axes[0, 0]
    first.set_xscale("log", base=2)
    first.set_yscale("log", base=2)
    widths = report.widths
    first.set_xlim(widths[0] / 1.2, widths[-1] * 1.2)
    low, high = np.log2(first.get_ylim()) if first.get_ylim()[0] > 0 else (0.0, 0.0)  # nothing but zeros to draw
    missing = max(0.0, MIN_OCTAVES - (high - low)) / 2  # a flat line must look flat: never zoom in on noise
    first.set_ylim(2 ** (low - missing), 2 ** (high + missing))
    spread = np.linspace(0, len(widths) - 1, min(len(widths), 4)).round().astype(int)
    shown = [widths[index] for index in spread]  # both ends, and what fits between
    for axis in axes.flat:
        axis.xaxis.set_major_locator(FixedLocator(shown))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:g}"))
        axis.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(_power_of_two))
        axis.tick_params(axis="x", pad=2)
    for axis in axes[-1]:
        axis.set_xlabel(legible(report.criteria.axis, NAME_LENGTH), labelpad=1)
    top = first.get_position().y1 + HEADER / figure.get_size_inches()[1]
    for axis, step in zip(axes[0], steps, strict=True):
        box = axis.get_position()
        figure.text(
            (box.x0 + box.x1) / 2, top, f"t = {step}" + (" (init)" if step == 0 else ""), ha="center", va="bottom"
        )
    for row in axes:
        row[0].set_ylabel(name)
        row[0].yaxis.set_label_coords(0.12 / LEFT - 1, 0.5, transform=_in_the_margin(row[0]))
    _wedge(first, widths)


def _in_the_margin(axis: Axes) -> Transform:
    """Horizontally from -1, the figure's edge, to 0, the axis; vertically as the axis."""
    margin = LEFT / PANEL[0]
    return Affine2D().scale(margin, 1.0) + axis.transAxes


def _power_of_two(value: float, _: object) -> str:
    """1/8, 1/2, 1, 4, 1024: what a reader expects on a log2 axis."""
    if value >= 1:
        return f"{value:g}" if value < 10_000 else f"2^{np.log2(value):.0f}"
    return f"1/{1 / value:g}" if value > 1e-4 else f"2^{np.log2(value):.0f}"


def _wedge(axis: Axes, widths: Sequence[int]) -> None:
    """A reference wedge of slopes 1/2 and 1 at the panel's left edge, above or below, where fewer lines run."""
    low, high = np.log2(axis.get_ylim())
    start, end = widths[0], widths[0] * (widths[-1] / widths[0]) ** 0.36
    rise, margin = np.log2(end / start), 0.06 * (high - low)
    if rise == 0 or rise + 2 * margin > high - low:  # one width, or a panel too low for a slope of 1
        return
    points = np.concatenate([np.asarray(line.get_ydata(), dtype=float)[:2] for line in axis.lines] or [np.empty(0)])
    heights = np.log2(points[points > 0])
    places = (high - rise - margin, low + margin)
    base = 2.0 ** min(
        places, key=lambda place: int(((heights > place - margin) & (heights < place + rise + margin)).sum())
    )
    axis.fill_between(
        [start, end],
        base * 2 ** np.array([0, rise / 2]),
        base * 2 ** np.array([0, rise]),
        color="0.85",
        linewidth=0,
        zorder=1,
    )
    apart = rise / 2 / (high - low) * PANEL[1]  # inches between the tips
    for exponent, text in ((0.5, "√n" if apart > MIN_APART else ""), (1.0, "n")):
        tip = base * 2 ** (rise * exponent)
        axis.plot([start, end], [base, tip], color="0.6", linewidth=0.7, zorder=1)
        axis.annotate(text, (end, tip), (2, 0), textcoords="offset points", va="center", color="0.45", fontsize=6.5)


def _name_lines(axis: Axes, lines: Mapping[str, Line2D], verdicts: pd.DataFrame) -> None:
    """Name the violated layers whose lines rise or fall most, at their end, spread so that no two names touch."""
    violated = {
        layer for layer, word in zip(verdicts["layer"], verdicts["verdict"], strict=True) if Verdict(word).violated
    }
    curves = {
        layer: np.log2(np.asarray(line.get_ydata(), dtype=float)) for layer, line in lines.items() if layer in violated
    }
    rises = {layer: abs(curve[-1] - curve[0]) for layer, curve in curves.items() if np.isfinite(curve[[0, -1]]).all()}
    named = sorted(rises, key=lambda layer: -rises[layer])[:NAMED]
    low, high = np.log2(axis.get_ylim())
    ends = sorted((float(curves[layer][-1]), layer) for layer in named)
    heights = _spread([(end - low) / (high - low) for end, _ in ends], gap=0.095)
    for (end, layer), height in zip(ends, heights, strict=True):
        line = lines[layer]
        axis.annotate(
            _short(layer),
            xy=(np.asarray(line.get_xdata(), dtype=float)[-1], 2.0**end),
            xytext=(1.12, height),
            textcoords="axes fraction",
            va="center",
            fontsize=6.5,
            color=line.get_color(),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.5,
                "color": line.get_color(),
                "relpos": (0, 0.5),
                "shrinkA": 0.5,
                "shrinkB": 0.5,
            },
        )


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


def _short(layer: str, limit: int = 26) -> str:
    """A layer's name fit for the margin: its end, from the number that tells it from its repeats.

    >>> _short("transformer.blocks.3.attention.query_projection")
    '…3.…ntion.query_projection'
    """
    layer = legible(layer)
    if len(layer) <= limit:
        return layer
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdecimal()]
    tail = ".".join(parts[numbered[-1] :]) if numbered else layer
    if len(tail) < limit:
        return f"…{tail}"
    head = f"…{parts[numbered[-1]]}." if numbered else ""
    return f"{head}…{tail[len(head) - limit + 1 :]}"
