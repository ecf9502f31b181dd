"""Which scales depend on the width by design, and which steps of many tell most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from coordcheck.analysis.marks import Mark
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.words import Quantity, Status


class Design(NamedTuple):
    """A slope at initialisation that is another than 0, and as it should be."""

    layer: str
    exponent: float
    """A multiple of 1/2 as a rule; minus infinity of a scale that is exactly zero."""


def by_design(result: Result, label: str) -> list[Design]:
    """The layers of a label whose scale at initialisation depends on the width and should, in data-flow order.

    A scale that is exactly zero at initialisation, in a layer that is right, is one of them.
    """
    found = result.marks
    found = found[(found["label"] == label) & (found["mark"] == Mark.DESIGN.value)]
    found = found[(found["quantity"] == Quantity.ACTIVATION.value) & (found["step"] == 0)]
    told = {row.layer: (row.order, row.exponent) for row in found.itertuples()}
    own = result.layers[result.layers["label"] == label]
    right = own[own["verdict"].map(lambda word: Verdict(word).passes).astype(bool)]
    slopes = result.slopes[(result.slopes["label"] == label) & (result.slopes["step"] == 0)]
    zero = slopes[(slopes["quantity"] == Quantity.ACTIVATION.value) & (slopes["status"] == Status.ZERO.value)]
    zero = zero[zero["layer"].isin(right["layer"])]
    told |= {row.layer: (row.order, -math.inf) for row in zero.itertuples()}
    flow = sorted(told.items(), key=lambda item: item[1][0])
    return [Design(str(layer), exponent) for layer, (_, exponent) in flow]


def decisive(result: Result) -> list[int]:
    """The steps that decided a violated layer's verdict, the most frequent first."""
    layers = result.layers
    steps = layers.loc[layers["verdict"].map(lambda word: Verdict(word).violated).astype(bool), "step"]
    return [int(step) for step in steps[steps >= 0].value_counts().index]


def spread(known: Sequence[int], most: int, first: Sequence[int] = ()) -> list[int]:
    """At most so many of many steps: the first, the last, the first update, those given, and then even in octaves.

    Args:
        known: the steps, ascending; at least one.
        most: how many are kept at most; 3 or more.
        first: those that matter more than others, the most important first.

    Returns:
        Ascending, `most` of them or fewer.

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
