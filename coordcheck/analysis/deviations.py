"""How far an exponent lies from its target, and what that is called."""

from __future__ import annotations

import math

from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.verdicts import Answer, Verdict, compare

HALFWAY = 0.15  # distance from a multiple of 1/2 from which on an exponent lies between two


def compare_known(exponent: Exponent, target: float, tolerance: float) -> Answer | None:
    """The three-valued comparison; None where there is nothing to compare."""
    if math.isnan(target) or not exponent.known:
        return None
    return compare(exponent, target, tolerance)


def deviation(exponent: Exponent, target: float, tolerance: float) -> Answer | None:
    """How an exponent is beyond its target, if it is."""
    answer = compare_known(exponent, target, tolerance)
    return answer if answer in (Answer.GROWS, Answer.SHRINKS) else None


def nearest_half(value: float) -> float:
    """The nearest multiple of 1/2."""
    return round(2 * value) / 2


def nearest_power(exponent: Exponent, target: float) -> float:
    """The multiple of 1/2 by which an exponent is off; halfway between two, that to which it goes with the width.

    >>> nearest_power(Exponent(0.68, 0.07, 0.5, 0.8, 0.84), 0.0), nearest_power(Exponent(0.68, 0.07, 0.5, 0.8), 0.0)
    (1.0, 0.5)
    """
    off, at_last = exponent.value - target, exponent.last_pair - target
    if math.isnan(at_last) or abs(off - nearest_half(off)) < HALFWAY:
        return nearest_half(off)
    below = math.floor(2 * off) / 2
    return below if at_last < below + 0.25 else below + 0.5


def nearest_quarter(value: float) -> float:
    """The nearest multiple of 1/4: a head size may grow as the root of the width, and its own root counts."""
    return round(4 * value) / 4


def size_verdict(excess: float) -> Verdict:
    """What an initialisation is whose gain is off by this, which is not 0."""
    return Verdict.TOO_LARGE if excess > 0 else Verdict.TOO_SMALL
