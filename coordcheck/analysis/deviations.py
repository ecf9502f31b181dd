"""How far an exponent lies from its target, and what that is called."""

from __future__ import annotations

import math

from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.verdicts import Answer, Verdict, compare


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


def nearest_quarter(value: float) -> float:
    """The nearest multiple of 1/4: a head size may grow as the root of the width, and its own root counts."""
    return round(4 * value) / 4


def size_verdict(excess: float) -> Verdict:
    """What an initialisation is whose gain is off by this, which is not 0."""
    return Verdict.TOO_LARGE if excess > 0 else Verdict.TOO_SMALL
