"""Figure 3: parameter by parameter, own update against inherited change, and gain and response against targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.errors import CoordCheckError
from coordcheck.escaping import legible
from coordcheck.figures.style import NAME_LENGTH, own_style
from coordcheck.records import Role, pattern

if TYPE_CHECKING:
    from coordcheck.report import Report

PANEL = 1.75  # inches
ROW = 0.165  # inches
MAX_ROWS = 40  # beyond it, the parameters of repeated blocks are drawn in one row
TOP, BOTTOM = 0.46, 0.42  # inches
REACH = 1.25  # of the exponent axes at least
OWN, INHERITED = {"marker": "o", "color": "black"}, {"marker": "o", "color": "0.55", "markerfacecolor": "white"}
GAIN, RESPONSE = {"marker": "D", "color": "#1f6f8b"}, {"marker": "o", "color": "black"}
FAULT = "#b2182b"
BARS = 2  # standard errors on each side


def draw_exponents(report: Report) -> Figure:
    """A forest plot: a row per parameter, two panels per label, error bars of two standard errors.

    Left: the exponents of the parameter's own update and of the change it inherits, at the first update. Right: how far
    gain (initialisation) and response (learning rate) are from their targets; the band is the tolerance, and what is
    to blame is red.

    Raises:
        CoordCheckError: nothing was diagnosed.
    """
    tables = {label: _shown(report, label) for label in report.labels if report.findings.get(label)}
    names = list(dict.fromkeys(name for table in tables.values() for name in table["layer"]))
    if not names:
        raise CoordCheckError(
            "nothing was diagnosed, so there are no exponents to draw (probe=None, or too few widths)."
        )
    shown, place = _rows(names)
    left = 0.062 * max(map(len, shown)) + 0.25
    with own_style(), mpl.rc_context({"axes.grid.axis": "x"}):
        width = left + 2 * len(tables) * (PANEL + 0.1) + 0.15
        height = TOP + BOTTOM + ROW * max(len(shown), 4)
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, 2 * len(tables), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(
            left=left / width, right=1 - 0.15 / width, top=1 - TOP / height, bottom=BOTTOM / height, wspace=0.07
        )
        for number, (label, table) in enumerate(tables.items()):
            pair = axes[2 * number : 2 * number + 2]
            _updates(pair[0], table, place)
            _deviations(pair[1], table, place, report.criteria.tolerance)
            blamed = int(table["culprit"].sum())
            verdict = f"{blamed} to blame" if blamed else "none to blame"
            middle = (pair[0].get_position().x0 + pair[1].get_position().x1) / 2
            where: Any = {"ha": "center", "va": "top", "fontweight": "bold", "fontsize": 9}
            figure.text(middle, 1 - 0.07 / height, f"{legible(label, NAME_LENGTH)}: {verdict}", **where)
        axes[0].set_yticks([-number for number in range(len(shown))], shown)
        axes[0].set_ylim(-len(shown) + 0.4, 0.6)
    return figure


def _shown(report: Report, label: str) -> pd.DataFrame:
    """The parameters to draw: matrices, attentions and whatever is to blame."""
    table = report.parameters[report.parameters["label"] == label]
    vectors = table["role"].isin([Role.VECTOR.value, Role.CONSTANT.value])
    return table[~vectors | table["culprit"].astype(bool)]


def _rows(names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The text of each row, and each name's place; repeated blocks share rows where there are too many names."""
    keys = {name: name if len(names) <= MAX_ROWS else pattern(name) for name in names}
    counts = Counter(keys.values())
    place = {key: -number for number, key in enumerate(counts)}
    texts = [legible(key if count == 1 else f"{key} ({count})", NAME_LENGTH) for key, count in counts.items()]
    return texts, {name: place[key] for name, key in keys.items()}


def _updates(axis: Axes, table: pd.DataFrame, place: dict[str, int]) -> None:
    _points(axis, table, place, "inherited", "inherited", 0.0, INHERITED)
    _points(axis, table, place, "own_update", "own update", 0.0, OWN)
    axis.axvline(0, color="0.35", linewidth=0.8, zorder=1)
    _finish(axis, "exponent of the width", table[["own_update", "inherited"]].to_numpy(dtype=float))


def _deviations(axis: Axes, table: pd.DataFrame, place: dict[str, int], tolerance: float) -> None:
    axis.axvspan(-tolerance, tolerance, color="0.92", zorder=0, linewidth=0)
    axis.axvline(0, color="0.35", linewidth=0.8, zorder=1)
    moved = table.assign(
        gain=table["gain"] - table["gain_target"], response=table["response"] - table["response_target"]
    )
    for name, text, shift, style in (("gain", "gain", 0.16, GAIN), ("response", "response", -0.16, RESPONSE)):
        off = moved["culprit"].astype(bool) & (moved[name].abs() > tolerance)
        _points(axis, moved[~off], place, name, text, shift, style)
        _points(axis, moved[off], place, name, None, shift, {**style, "color": FAULT})
    _finish(axis, "distance from target", moved[["gain", "response"]].to_numpy(dtype=float))


def _points(
    axis: Axes, table: pd.DataFrame, place: dict[str, int], name: str, text: str | None, shift: float, style: Any
) -> None:
    known = table[table[name].notna()]
    rows = [place[layer] + shift for layer in known["layer"]]
    errors = BARS * known[f"{name}_stderr"].fillna(0.0)
    axis.errorbar(
        known[name], rows, xerr=errors, label=text, linestyle="none", markersize=3.2, elinewidth=0.7, zorder=3, **style
    )


def _finish(axis: Axes, text: str, values: Any) -> None:
    reach = max([REACH, *(abs(value) + 0.2 for value in values[pd.notna(values)])])
    axis.set_xlim(-reach, reach)
    axis.set_xticks([tick / 2 for tick in range(-int(2 * reach), int(2 * reach) + 1) if reach < 2 or tick % 2 == 0])
    axis.xaxis.set_major_formatter(
        lambda value, _: f"{value:g}".replace("0.5", "½") if abs(value) < 1 else f"{value:g}"
    )
    axis.set_xlabel(text)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        frameon=False,
        fontsize=7,
        handletextpad=0.1,
        columnspacing=0.8,
        borderpad=0.1,
        borderaxespad=0.1,
    )
