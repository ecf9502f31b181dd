"""Where a batch is learnt by heart within the first steps: the changes after that are none of a parametrization.

The gradient of a loss that has almost vanished vanishes with it. Wide models with a learning rate that is too large for
the batch get there first, and what moves at a later step only, as all that stands before a readout of zeros, then moves
less the wider the model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Quantity

LATE = "the batch was learnt by heart before"  # of a change
LEARNT = 0.1  # of the loss at t=0 that is left of a batch that was learnt by heart


class Learnt(NamedTuple):
    """The first step at which a label's batch was learnt by heart at some width."""

    step: int
    width: int
    first: float
    """The loss at t=0."""
    left: float
    """The loss at that step."""

    def __str__(self) -> str:
        return (
            f"the loss fell from {self.first:.2g} to {self.left:.2g} by t={self.step} at width {self.width}, so that "
            "the batch was learnt by heart and no gradient is left: lower the learning rate, or take more examples"
        )


def learnt(records: Sequence[RunRecord]) -> dict[str, Learnt]:
    """Per label the first such step; of several widths, the one with the least loss. Losses are medians over seeds."""
    losses: dict[tuple[str, int], list[list[float]]] = {}
    for record in records:
        known = [np.nan if loss is None else loss for loss in record.losses]
        if record.finished and known:
            losses.setdefault((record.key.label, record.key.width), []).append(known)
    found: dict[str, list[Learnt]] = {}
    for (label, width), several in losses.items():
        shortest = min(map(len, several))
        medians = np.median([one[:shortest] for one in several], axis=0)
        below = np.flatnonzero((medians >= 0) & (medians < LEARNT * medians[0]))
        if below.size:
            step = int(below[0])
            found.setdefault(label, []).append(Learnt(step, width, float(medians[0]), float(medians[step])))
    return {label: min(each, key=lambda one: (one.step, one.left)) for label, each in found.items()}


def without_learnt(sites: pd.DataFrame, found: Mapping[str, Learnt]) -> pd.DataFrame:
    """The layers' verdicts, undecided where their change shrinks after the batch was learnt by heart."""
    late = sites["label"].map({label: one.step for label, one in found.items()}) < sites["step"]
    changes = sites["quantity"] == Quantity.CHANGE.value
    rows = late & changes & sites["verdict"].isin([Verdict.VANISHES.value, Verdict.UNDECIDED.value])
    told = sites.copy()
    told.loc[rows, "verdict"] = Verdict.UNDECIDED.value
    told.loc[rows, "explanation"] += f"; {LATE}"
    told.loc[rows, "step"] = -1  # more seeds or widths would not tell
    return told


def notes(sites: pd.DataFrame, found: Mapping[str, Learnt]) -> Iterator[str]:
    """What is to be done, where a layer is undecided for this reason."""
    for label, one in found.items():
        if sites["explanation"][sites["label"] == label].str.contains(LATE, regex=False).any():
            yield f"{label}: {one}"
