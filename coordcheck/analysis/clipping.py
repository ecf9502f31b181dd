"""What shrinks an update beside its gradient: clipping, at every width or at some of them.

With g the gradient as backward left it, dp the update and lr the learning rate, an update of degree 1 is dp = s lr g
with a factor s that clipping makes smaller than 1: s = c / |g| where the norm |g| is above the threshold c (Pascanu,
Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063). Where it does so at
every width, s is a power of the width if |g| is, and a use of what the learning rate has to make up for. Where it
does so at some widths alone, it is none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WHOLE = 1e-3  # relative distance up to which a factor is 1, or that of another width
SHRUNK = 0.15  # and below the largest one from which on it is smaller: by so little, no exponent is off by 0.25
SEEN = 0.01  # and from which on it is named as well, beside one that is
BENT = 0.02  # distance of log2 of the factors to a power of the width from which on they are none


class Clipping(NamedTuple):
    """The factors of one use's updates."""

    factors: Array
    """(seed, width) where they are no power of the width, relative to those that are whole; 1 elsewhere."""
    widths: tuple[int, ...] = ()
    """At which they are shrunk, while they are not at others."""


def clipping(factors: Array, widths: Array) -> Clipping:
    """Whether factors are shrunk at some widths alone.

    Args:
        factors: (seed, width) sizes of an update beside learning rate times gradient, NaN where unknown.
        widths: (width,).

    Returns:
        The factors to leave out, and the widths at which they shrink an update; all 1, and none, where no width is
        alone.

    A factor that is whole is 1, or that of several widths: a schedule or a momentum may multiply all of them.

    >>> clipping(np.array([[1.0, 1.0, 0.7]]), np.array([64, 128, 256])).widths
    (256,)
    >>> clipping(np.array([[0.5, 0.35, 0.25]]), np.array([64, 128, 256])).widths
    ()
    """
    none = Clipping(np.ones_like(factors))
    known = np.isfinite(factors)
    if not known.any():
        return none
    largest = float(factors[known].max())
    whole = np.where(known, factors, largest) > largest * (1 - WHOLE)
    if whole.all(axis=0).sum() < 2 and not (abs(largest - 1) < WHOLE and _bent(factors, widths)):
        return none
    relative = np.where(known, factors / largest, 1.0)
    if not (relative < 1 - SHRUNK).any():
        return none
    return Clipping(relative, tuple(int(width) for width in widths[(relative < 1 - SEEN).any(axis=0)]))


def _bent(factors: Array, widths: Array) -> bool:
    """Whether factors are no power of the width, which those of another learning rate than the one that is known are.

    >>> _bent(np.array([[1.0, 0.5, 0.25]]), np.array([64, 128, 256]))
    False
    """
    x, logs = np.log2(widths.astype(float)), np.log2(factors)
    rows = [row for row in logs if np.isfinite(row).sum() > 2]
    return any(_residual(x[np.isfinite(row)], row[np.isfinite(row)]) > BENT for row in rows)


def _residual(x: Array, y: Array) -> float:
    """The largest distance to a straight line."""
    return float(np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max())
