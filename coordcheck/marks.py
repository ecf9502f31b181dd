"""Where a scale leaves the exponent that it was held against, step by step, and where it may: what figures point at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from coordcheck.records import Quantity, Status
from coordcheck.verdicts import OF_SITES, TRANSIENT, Verdict

if TYPE_CHECKING:
    from coordcheck.report import Report

KEYS = ["label", "layer", "quantity", "step"]


class Mark(str, Enum):
    """What one slope of one layer is, beside flat."""

    VIOLATED = "violated"
    """Beyond the tolerance with its whole 95 % interval, in a layer that is violated."""
    DESIGN = "by design"
    """Not flat, and right: a readout that starts small, or an exponent that was expected."""


class Design(NamedTuple):
    """A slope at initialisation that is another than 0, and as it should be."""

    layer: str
    exponent: float
    """A multiple of 1/2 as a rule; minus infinity of a scale that is exactly zero."""


def marks(report: Report) -> pd.DataFrame:
    """The slopes that are not flat, of what was judged or is drawn.

    Returns:
        Columns `label, layer, quantity, step, order, mark, exponent`; a row per slope that is beyond the tolerance in a
        violated layer, or is another than 0 by design. `exponent` is the expected one, or the measured one to a half.
    """
    slopes = report.slopes[report.slopes["quantity"].isin(OF_SITES)]
    layers = report.layers[["label", "layer", "verdict", "expected"]]
    cells = slopes.merge(layers, on=["label", "layer"], how="inner")
    change = cells["quantity"] == Quantity.CHANGE.value
    if report.criteria.parametrization != "mup":  # only its changes are judged
        cells, change = cells[~change], change[~change]
    tolerance, expected = report.criteria.tolerance, cells["expected"].fillna(0.0)
    above, below = cells["low"] - expected > tolerance, cells["high"] - expected < -tolerance
    fixed = ~pd.Series(
        [report.growing.get(key, True) for key in zip(cells["label"], cells["layer"], strict=True)],
        index=cells.index,
        dtype=bool,
    )
    # an output of a fixed size may start as small as it likes, and may shrink by n ** -1/2 until it aligns
    deep = cells["high"] - expected < -tolerance - TRANSIENT
    allowed = fixed & below & ~(change & deep)
    words = cells["verdict"].map(Verdict)
    violated = (above | below) & ~allowed & words.map(lambda word: word.violated).astype(bool)
    passing = words.map(lambda word: word.passes).astype(bool)
    aimed = (expected.abs() >= tolerance) & ~above & ~below
    design = ~violated & cells["slope"].notna() & (aimed | allowed | (below & passing))
    cells["mark"] = np.select([violated, design], [Mark.VIOLATED.value, Mark.DESIGN.value], default="")
    cells["exponent"] = expected.where(aimed, np.round(2 * cells["slope"]) / 2)
    return cells.loc[cells["mark"] != "", [*KEYS, "order", "mark", "exponent"]].reset_index(drop=True)


def by_design(report: Report, label: str) -> list[Design]:
    """The layers of a label whose scale at initialisation depends on the width and should, in data-flow order.

    A scale that is exactly zero at initialisation, in a layer that is right, is one of them.
    """
    found = report.marks
    found = found[(found["label"] == label) & (found["mark"] == Mark.DESIGN.value)]
    found = found[(found["quantity"] == Quantity.ACTIVATION.value) & (found["step"] == 0)]
    told = {row.layer: (row.order, row.exponent) for row in found.itertuples()}
    passing = report.layers["verdict"].map(lambda word: Verdict(word).passes).astype(bool)
    right = report.layers[(report.layers["label"] == label) & passing]
    slopes = report.slopes[(report.slopes["label"] == label) & (report.slopes["step"] == 0)]
    zero = slopes[(slopes["quantity"] == Quantity.ACTIVATION.value) & (slopes["status"] == Status.ZERO.value)]
    zero = zero[zero["layer"].isin(right["layer"])]
    told |= {row.layer: (row.order, -math.inf) for row in zero.itertuples()}
    flow = sorted(told.items(), key=lambda item: item[1][0])
    return [Design(str(layer), exponent) for layer, (_, exponent) in flow]


def decisive(report: Report) -> list[int]:
    """The steps that decided a violated layer's verdict, the most frequent first."""
    layers = report.layers
    steps = layers.loc[layers["verdict"].map(lambda word: Verdict(word).violated).astype(bool), "step"]
    return [int(step) for step in steps[steps >= 0].value_counts().index]


def spread(known: Sequence[int], most: int, first: Sequence[int] = ()) -> list[int]:
    """At most so many of many steps: the first, the last, the first update, those given, and then even in octaves.

    Args:
        known: the steps, ascending; at least one.
        most: how many are kept at most; 3 or more.
        first: those that matter more than others, the most important first.

    >>> spread(range(129), 6)
    [0, 1, 3, 11, 38, 128]
    >>> spread(range(129), 6, first=[23])
    [0, 1, 3, 11, 23, 128]
    """
    if len(known) <= most:
        return list(known)
    later = [step for step in known if step > 0]
    goals = np.geomspace(later[0], later[-1], most - (known[0] == 0))
    even = [min(later, key=lambda step: abs(math.log2(step / goal))) for goal in goals]
    wanted = [known[0], known[-1], later[0], *(step for step in first if step in known), *even]
    return sorted(list(dict.fromkeys(wanted))[:most])
