"""Numbers that a caller hands in."""

from __future__ import annotations

import math
import operator
from typing import Any

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.reading import LARGEST, WIDEST

MOST = {"steps": 1_000_000, "jobs": 1024, "width": WIDEST, "seed": LARGEST}


def whole_number(name: str, value: object, minimum: int) -> int:
    """An integer argument.

    Raises:
        CoordCheckError: anything else, one below `minimum`, or one that is absurdly large.
    """
    number, most = integer(value), MOST.get(name)
    if number is None or number < minimum:
        raise CoordCheckError(f"{name} must be an integer of {minimum} or more, got {value!r}.")
    if most is not None and number > most:
        raise CoordCheckError(f"{name} must be an integer from {minimum} to {most}, got {value!r}.")
    return number


def integer(value: Any) -> int | None:
    """The integer that `value` is, of whichever library; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def finite(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        CoordCheckError: anything else.
    """
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise CoordCheckError(f"{name} must be a finite number, got {value!r:.60}.")
    return number


def positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        CoordCheckError: anything else.
    """
    if finite(name, value) <= 0:
        raise CoordCheckError(f"{name} must be above 0, got {value!r}.")
    return float(value)
