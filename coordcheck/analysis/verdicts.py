"""Slopes -> verdicts: what the widths say about each layer, in the words a user sees.

These are the symptoms: how far a layer's scale at initialisation, and its change in training, depend on the
width. Exponents of practical parametrizations are multiples of 1/2, so a slope within 1/4 of the expected one
is that exponent, and the answer has three values:

    ok        |slope - expected| + half the 95 % interval < tolerance
    violated  |slope - expected| - half the 95 % interval > tolerance
    undecided in between: the data do not tell
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import pandas as pd

from coordcheck.runs.words import Quantity

TOLERANCE = 0.25
TRANSIENT = 0.5
"""How far an output with a fixed number of coordinates may shrink: the scale of a µP readout falls as n ** -1/2
at initialisation, and that part of it fades in training."""

Expectation = Mapping[str, float]
"""Layer glob -> the exponent that this layer's activation and change should have; unnamed layers: 0."""


class Verdict(str, Enum):
    """One layer's verdict; the words are the user's."""

    NOT_FINITE = "not finite"
    TOO_LARGE = "initialised too large"
    TOO_SMALL = "initialised too small"
    BLOWS_UP = "blows up"
    VANISHES = "vanishes"
    LEARNS_TOO_FAST = "learns too fast"
    LEARNS_TOO_SLOWLY = "learns too slowly"
    UNDECIDED = "undecided"
    FROZEN = "frozen"
    """Its output never changed. Constant buffers and untrained layers do this by design."""
    NOT_VISIBLE = "not visible"
    """A parameter whose own update could not be seen; the explanation says why."""
    NOT_COMPARED = "not compared"
    """Seen at some widths only, too few for a slope, as a layer of deeper models along a depth axis; or integers."""
    NOT_JUDGED = "ok, changes not judged"
    """Right at initialisation; a change is none of training, because every step saw another batch."""
    OK = "ok"

    @property
    def harmless(self) -> bool:
        return self.value in _HARMLESS

    @property
    def passes(self) -> bool:
        """Whether a label of which this is said has been checked, and nothing is wrong with it."""
        return self in (Verdict.OK, Verdict.NOT_JUDGED)

    @property
    def violated(self) -> bool:
        return self not in _NOT_VIOLATED


_HARMLESS = ("ok", "ok, changes not judged", "not visible")
_NOT_VIOLATED = (
    *(Verdict.UNDECIDED, Verdict.FROZEN, Verdict.NOT_VISIBLE, Verdict.NOT_COMPARED),
    *(Verdict.NOT_JUDGED, Verdict.OK),
)


class Answer(Enum):
    """The three-valued comparison of a slope with its expected exponent."""

    OK = 0
    GROWS = 1
    SHRINKS = -1
    UNDECIDED = None


class Evidence(NamedTuple):
    """The slope that decided a verdict."""

    quantity: Quantity
    step: int
    slope: float
    stderr: float
    low: float
    high: float
    growth: float
    power_law: bool


class Interval(Protocol):
    """A fitted slope with its 95 % interval."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def compare(evidence: Interval, expected: float, tolerance: float, shrink_allowed: float = 0.0) -> Answer:
    """Whether a slope is its expected exponent, within `tolerance` and its own 95 % interval.

    Args:
        evidence: the slope with its interval.
        expected: the exponent it should have.
        tolerance: how far from it still counts as being it.
        shrink_allowed: how far below `expected` the slope may lie as well.

    Returns:
        `OK`, `GROWS` or `SHRINKS` where the whole interval says so, else `UNDECIDED`.
    """
    low, high = evidence.low - expected, evidence.high - expected
    if low > tolerance:
        return Answer.GROWS
    if high < -tolerance - shrink_allowed:
        return Answer.SHRINKS
    if high < tolerance and low > -tolerance - shrink_allowed:
        return Answer.OK
    return Answer.UNDECIDED


OF_SITES = [Quantity.ACTIVATION.value, Quantity.MEAN_ABS.value, Quantity.CHANGE.value]


def summary(words: Sequence[Verdict]) -> str:
    """One label's verdicts in a line.

    >>> summary([Verdict.OK, Verdict.BLOWS_UP, Verdict.BLOWS_UP])
    '2 of 3 layers blow up'
    """
    total = len(words)
    violated = Counter(word for word in words if word.violated)
    if violated:
        (first, count), *rest = violated.most_common()
        text = f"{count} of {total} layers {_PLURALS.get(first, first.value) if count > 1 else first.value}"
        return text + "".join(f", {n} {_PLURALS.get(word, word.value) if n > 1 else word.value}" for word, n in rest)
    counts = Counter(words)
    if counts[Verdict.UNDECIDED]:
        return f"{counts[Verdict.UNDECIDED]} of {total} layers undecided"
    if counts[Verdict.NOT_JUDGED]:
        right = counts[Verdict.OK] + counts[Verdict.NOT_JUDGED]
        which = f"all {total}" if right == total else f"{right} of {total}"
        return f"{which} layers are right at initialisation (changes not judged)"
    if not counts[Verdict.OK]:
        return f"nothing to judge: none of {total} layers moved"
    if counts[Verdict.OK] == total:
        return f"all {total} layers keep their scale"
    text = f"{counts[Verdict.OK]} of {total} layers keep their scale"
    text += f", {counts[Verdict.FROZEN]} never moved" if counts[Verdict.FROZEN] else ""
    return text + (f", {counts[Verdict.NOT_COMPARED]} not compared" if counts[Verdict.NOT_COMPARED] else "")


_PLURALS = {Verdict.BLOWS_UP: "blow up", Verdict.VANISHES: "vanish"}


def label_status(verdicts: pd.DataFrame) -> dict[str, Verdict]:
    """Per label: the verdict of the first violated layer or of the first culprit, else undecided, else ok.

    Where most parameters are not visible, that no layer is violated decides nothing. Where no change could be judged,
    only parameters decide, whose updates were: else the learning rates would pass unseen.
    """
    result = {}
    for label, group in verdicts.groupby("label", sort=False):
        found = [Verdict(word) for word in group["verdict"]]
        culprits = group["culprit"] if "culprit" in group else [False] * len(found)
        violated = [v for v, culprit in zip(found, culprits, strict=True) if v.violated or culprit]
        undecided = Verdict.UNDECIDED in found or Verdict.OK not in found or mostly_unseen(group)
        right = Verdict.OK
        if Verdict.NOT_JUDGED in found:
            right = Verdict.NOT_JUDGED
            undecided = undecided or not _some_parameter_is_right(group)
        result[str(label)] = violated[0] if violated else Verdict.UNDECIDED if undecided else right
    return result


def _some_parameter_is_right(verdicts: pd.DataFrame) -> bool:
    return "parameter" in verdicts and bool(
        (verdicts["parameter"].notna() & (verdicts["verdict"] == Verdict.OK.value)).any()
    )


def mostly_unseen(verdicts: pd.DataFrame) -> bool:
    """Whether more than half of a label's parameters are not visible."""
    if "parameter" not in verdicts:
        return False
    words = verdicts["verdict"][verdicts["parameter"].notna()]
    return bool(2 * (words == Verdict.NOT_VISIBLE.value).sum() > len(words))
