"""Figure 3: parameter by parameter, own update against inherited change, and gain and response against targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import coordcheck.reporting.figures.style as style
from coordcheck.analysis.result import Result
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import legible
from coordcheck.reporting.figures.grids import Grid, Margins, names_width, write_notes
from coordcheck.reporting.figures.rows import Rows, rows_of
from coordcheck.reporting.figures.style import own_style
from coordcheck.reporting.figures.views import View
from coordcheck.reporting.summaries import counts
from coordcheck.runs.words import Role

PANEL, ROW = 1.75, 0.165  # inches: the width of a panel, and the height of a row
MARGINS = Margins(top=0.5, bottom=0.42, right=0.18, apart=0.1)
MIN_ROWS = 4  # of height
PAIRS = 2  # labels in a line at most, each of which has two panels
REACH = 1.25  # of the exponent axes at least
OWN, GAIN = {"marker": "o"}, {"marker": "D", "color": "#1f6f8b"}
FAULT = "#b2182b"
BARS = 2  # standard errors on each side


def draw_exponents(report: Result, view: View | None = None) -> Figure:
    """A forest plot: a row per parameter, two panels per label, error bars of two standard errors.

    Left: the exponents of the parameter's own update and of the change it inherits, at the first update. Right: how far
    gain (initialisation) and response (learning rate) are from their targets; the band is the tolerance, and what is
    to blame is red. Where there are many parameters, those of repeated blocks share a row.

    Raises:
        CoordCheckError: nothing was diagnosed, a quantity or steps were asked for, or a glob matches no parameter.
    """
    view = view or View()
    if view.quantity is not None or view.steps is not None:
        raise CoordCheckError(
            "the figure of exponents has no quantity= and no steps=: it shows one update's diagnosis."
        )
    table = _shown(report, view)
    labels = [label for label in report.labels if label in set(table["label"])]
    rows = rows_of(list(dict.fromkeys(table["layer"])), _badness(table))
    table = table[table["layer"].isin(list(rows.place))]
    with own_style(), mpl.rc_context({"axes.grid.axis": "x"}):
        grid = _grid(labels, rows, view)
        figure = Figure(figsize=grid.size)
        for number, label in enumerate(labels):
            pair = [figure.add_axes(grid.box(2 * number + side)) for side in range(2)]
            own = table[table["label"] == label]
            place = {name: -row for name, row in rows.place.items()}
            _updates(pair[0], own, place)
            _deviations(pair[1], own, place, report.criteria.tolerance)
            for axis in pair:
                axis.set_yticks([-row for row in range(len(rows.texts))], rows.texts)
                axis.set_ylim(-len(rows.texts) + 0.4, 0.6)
                axis.tick_params(axis="y", length=0, labelleft=axis is pair[0] and number % PAIRS == 0)
            _title(figure, grid, number, (label, counts(report.parameters[report.parameters["label"] == label])))
        write_notes(figure, grid)
    return figure


def _shown(report: Result, view: View) -> pd.DataFrame:
    """The parameters to draw: matrices, attentions and whatever is to blame.

    Raises:
        CoordCheckError: there are none, or a glob matches none.
    """
    found = report.parameters[report.parameters["label"].isin(list(report.findings))]
    vectors = found["role"].isin([Role.VECTOR.value, Role.CONSTANT.value])
    found = found[~vectors | found["culprit"].astype(bool)]
    if found.empty:
        raise CoordCheckError(
            "nothing was diagnosed, so there are no exponents to draw (probe=None, or too few widths)."
        )
    return found[view.named(found["layer"])]


def _badness(table: pd.DataFrame) -> dict[str, float]:
    """How far each parameter is from its targets; what is to blame first."""
    off = [(table[name] - table[f"{name}_target"]).abs().fillna(0.0) for name in ("gain", "response")]
    badness = off[0].clip(lower=off[1]) + 100.0 * table["culprit"].astype(float)
    return {str(name): float(most) for name, most in badness.groupby(table["layer"]).max().items()}


def _grid(labels: Sequence[str], rows: Rows, view: View) -> Grid:
    """Room for everything: panels of one size, or as large as the figure lets them be.

    Raises:
        CoordCheckError: a size that leaves no room for the panels.
    """
    scale, count = style.scale(), max(len(rows.texts), MIN_ROWS)
    pairs, panel = min(len(labels), PAIRS), (PANEL * scale, ROW * scale * count)
    grid = Grid(scale, MARGINS, 2 * pairs, -(-len(labels) // pairs), names_width(rows.texts), panel)
    grid = grid.noted([rows.note] if rows.note else [])
    return grid.fitted(view, (0.6 * scale, 0.03 * count), f"{len(rows.texts)} rows")


def _title(figure: Figure, grid: Grid, number: int, content: tuple[str, tuple[int, int, int]]) -> None:
    """A label and how much of it is to blame, above its pair of panels."""
    label, (blamed, _, others) = content
    count = blamed + others
    left, right = grid.box(2 * number), grid.box(2 * number + 1)
    top = left[1] + left[3] + (MARGINS.top - 0.09) * grid.scale / grid.size[1]
    verdict, size = f"{count or 'none'} to blame", style.size(style.LARGE)
    room = 2 * grid.panel[0] - style.text_width(f": {verdict}", size, "bold")
    name = style.shortened(legible(label), size, room / 1.15)  # bold is wider
    look: Any = {"ha": "center", "va": "top", "fontweight": "bold", "fontsize": size}
    figure.text((left[0] + right[0] + right[2]) / 2, top, f"{name}: {verdict}", **look)


def _updates(axis: Axes, table: pd.DataFrame, place: dict[str, int]) -> None:
    hollow = {"color": style.ink(0.45), "markerfacecolor": mpl.rcParams["axes.facecolor"]}
    _points(axis, table, (place, 0.0), "inherited", {**OWN, **hollow})
    _points(axis, table, (place, 0.0), "own_update", OWN)
    axis.axvline(0, color=style.ink(0.65), linewidth=0.8, zorder=1)
    _finish(axis, "exponent of the width", table[["own_update", "inherited"]].to_numpy(dtype=float))


def _deviations(axis: Axes, table: pd.DataFrame, place: dict[str, int], tolerance: float) -> None:
    axis.axvspan(-tolerance, tolerance, color=style.ink(0.08), zorder=0, linewidth=0)
    axis.axvline(0, color=style.ink(0.65), linewidth=0.8, zorder=1)
    moved = table.assign(
        gain=table["gain"] - table["gain_target"], response=table["response"] - table["response_target"]
    )
    for name, shift, look in (("gain", 0.16, {**OWN, **GAIN}), ("response", -0.16, OWN)):
        off = moved["culprit"].astype(bool) & (moved[name].abs() > tolerance)
        _points(axis, moved[~off], (place, shift), name, look)
        _points(axis, moved[off], (place, shift), name, {**look, "color": FAULT, "label": None})
    _finish(axis, "distance from target", moved[["gain", "response"]].to_numpy(dtype=float))


def _points(
    axis: Axes, table: pd.DataFrame, where: tuple[dict[str, int], float], name: str, look: dict[str, Any]
) -> None:
    """One kind of exponent of all parameters; `where` is the row of each, and the shift from it."""
    (place, shift), known = where, table[table[name].notna()]
    rows = [place[layer] + shift for layer in known["layer"]]
    errors = BARS * known[f"{name}_stderr"].fillna(0.0)
    usual: dict[str, Any] = {
        "color": style.ink(),
        "label": name.replace("_", " "),
        "linestyle": "none",
        "markersize": 3.2,
    }
    axis.errorbar(known[name], rows, xerr=errors, elinewidth=0.7, zorder=3, **(usual | look))


def _finish(axis: Axes, text: str, values: Any) -> None:
    reach = max([REACH, *(abs(value) + 0.2 for value in values[pd.notna(values)])])
    axis.set_xlim(-reach, reach)
    every = max(1, math.ceil(2 * reach / 3.99)) if reach < 2 else 2 * math.ceil(reach / 3.99)  # halves, while they fit
    ticks = [tick / 2 for tick in range(-int(2 * reach), int(2 * reach) + 1) if tick % every == 0]
    axis.set_xticks(ticks, list(map(style.power, ticks)))
    axis.set_xlabel(text)
    axis.spines["left"].set_visible(False)
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        frameon=False,
        fontsize=style.size(7.0),
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0.1,
        borderaxespad=0.1,
    )
