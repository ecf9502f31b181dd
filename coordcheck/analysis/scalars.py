"""Which of two operations a scalar between them belongs to: the one whose scale it leaves alike at all widths.

A scalar that depends on the width may be the multiplier of the matrix behind it, or undo what stands before it: the
sqrt(n) behind a vector that was normalised to length 1, the 1/sqrt(n) behind a matrix of entries of size 1 whose
outputs are queries. The structure does not tell; what was measured before and behind it does. A scalar behind a matrix
acts as one in front of it: the sqrt(n) behind the product of a unit vector and a matrix undoes that vector's length.
One behind a relu is of the matrices in front of it, or of the one that takes it: where it leaves alike what that one
takes, it is of all of those, whatever a single one of them gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordcheck.analysis.logs import Array, Logs
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.runs.words import Quantity, Role

DEPENDS = 0.05  # slope of a scalar from which on it depends on the width
EXACT = 1e-3  # standard error of a slope below which a scale is a power of the width, as that of a unit vector is
NEARER = 0.2  # by which a slope must be nearer to 0 with a scalar than without it for it to have undone something


class Scalars(NamedTuple):
    """log2 of the scalars that are another operation's than the record says: (use, 1, width), 0 where none is."""

    before: Array
    """Of a matrix: they undo what stands in front of it. Of an attention: they are its projections' own."""
    behind: Array
    """Behind a projection: its own, and not the attention's."""
    met: Array
    """(use, seed, width) of an attention: what its queries and keys are that are no projection's output."""


def scalars_of(logs: Logs, uses: Sequence[UseAcrossWidths]) -> Scalars:
    """Whose the scalars beside each use are."""
    start = np.zeros(len(uses), dtype=int)
    x, h = logs.at(Quantity.INPUT, start), logs.at(Quantity.OUTPUT, start)
    upstream, outward = (
        np.nan_to_num(logs.of([use.upstreams for use in uses])),
        np.nan_to_num(logs.of([use.outwards for use in uses])),
    )
    attention = np.array([use.role is Role.ATTENTION for use in uses])
    before = np.where((~attention & _flattens(logs, x, upstream))[:, None, None], upstream, 0.0)
    rest = np.nan_to_num(logs.of([use.multipliers for use in uses])) - before
    before = before + np.where(attention[:, None, None], 0.0, _undone_behind(logs, x + before, rest))
    owned = _flattens(logs, h - x - before, outward) | _flattens_next(logs, uses, (x + before, x + upstream, outward))
    owned &= ~attention
    taken = {name for use, own in zip(uses, owned, strict=True) if own for name in use.attends}
    lost = np.array([use.name in taken for use in uses])
    return Scalars(
        before=before + np.where(lost[:, None, None], outward, 0.0),
        behind=np.where(owned[:, None, None], outward, 0.0),
        met=np.nan_to_num(x),
    )


def _flattens(logs: Logs, scales: Array, scalar: Array) -> NDArray[np.bool_]:
    """Whether a scale depends less on the width with a scalar than without it: (use,)."""
    without, with_it, own = (
        np.array([fitted.value for fitted in logs.fit(values)]) for values in (scales, scales + scalar, scalar)
    )
    with np.errstate(invalid="ignore"):
        return (np.abs(own) > DEPENDS) & (np.abs(with_it) + NEARER < np.abs(without))


def _flattens_next(
    logs: Logs, uses: Sequence[UseAcrossWidths], scales: tuple[Array, Array, Array]
) -> NDArray[np.bool_]:
    """Whether what the next matrix takes depends less on the width with the scalar behind a use than without: (use,).

    The scales are those of what each use takes, with its own scalars left out, and with them; and the scalar behind it.
    """
    given, taken, behind = ([fitted.value for fitted in logs.fit(values)] for values in scales)
    matrices = {use.name: taken[number] for number, use in enumerate(uses) if use.role is not Role.ATTENTION}
    found = np.zeros(len(uses), dtype=bool)
    for number, use in enumerate(uses):
        nexts = [matrices[name] - given[number] for name in use.feeds if name in matrices and not use.attends]
        own = behind[number]
        found[number] = abs(own) > DEPENDS and any(abs(with_it) + NEARER < abs(with_it - own) for with_it in nexts)
    return found


def _undone_behind(logs: Logs, scales: Array, scalar: Array) -> Array:
    """The part of a scalar that undoes the scale of a normed vector in front of the matrix: (use, 1, width).

    That scale is a power of the width without noise, as no sum of drawn numbers is; the rest is the matrix's own.
    """
    parts = []
    for taken, own in zip(logs.fit(scales), logs.fit(scalar), strict=True):
        undoes = taken.stderr < EXACT and abs(taken.value) > DEPENDS and -own.value / taken.value > 1 - NEARER
        parts.append(-taken.value if undoes else 0.0)
    return np.array(parts)[:, None, None] * np.log2(logs.widths.astype(float))
