"""Where a scale leaves the exponent that it was held against, step by step, and where it may: what figures point at."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import numpy as np
import pandas as pd

from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import OF_SITES, TRANSIENT, Verdict
from coordcheck.runs.words import Quantity

KEYS = ["label", "layer", "quantity", "step"]


class Mark(str, Enum):
    """What one slope of one layer is, beside flat."""

    VIOLATED = "violated"
    """Beyond the tolerance with its whole 95 % interval, in a layer that is violated."""
    DESIGN = "by design"
    """Not flat, and right: a readout that starts small, or an exponent that was expected."""


def marks(
    slopes: pd.DataFrame, layers: pd.DataFrame, growing: Mapping[tuple[str, str], bool], criteria: Criteria
) -> pd.DataFrame:
    """The slopes that are not flat, of what was judged or is drawn.

    Args:
        slopes: one row per (label, layer, quantity, step).
        layers: the verdicts of layers, one row per (label, layer).
        growing: per (label, layer) whether its output has an axis that grows with the width.
        criteria: what the slopes were held against.

    Returns:
        Columns `label, layer, quantity, step, order, mark, exponent`; a row per slope that is beyond the tolerance in a
        violated layer, or is another than 0 by design. `exponent` is the expected one, or the measured one to a half.
    """
    told = layers[["label", "layer", "verdict", "expected"]]
    cells = slopes[slopes["quantity"].isin(OF_SITES)].merge(told, on=["label", "layer"], how="inner")
    change = cells["quantity"] == Quantity.CHANGE.value
    if criteria.parametrization != "mup":  # only its changes are judged
        cells, change = cells[~change], change[~change]
    tolerance, expected = criteria.tolerance, cells["expected"].fillna(0.0)
    above, below = cells["low"] - expected > tolerance, cells["high"] - expected < -tolerance
    fixed = ~pd.Series(
        [growing.get(key, True) for key in zip(cells["label"], cells["layer"], strict=True)],
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
