"""Which of two operations a scalar between them belongs to: the one whose scale it leaves alike at all widths.

A scalar that depends on the width may be the multiplier of the matrix behind it, or undo what stands before it: the
sqrt(n) behind a vector that was normalised to length 1, the 1/sqrt(n) behind a matrix of entries of size 1 whose
outputs are queries. The structure does not tell; what was measured before and behind it does.
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
NEARER = 0.2  # by which a slope must be nearer to 0 with a scalar than without it for it to have undone something


class Scalars(NamedTuple):
    """log2 of the scalars that are another operation's than the record says: (use, 1, width), 0 where none is."""

    before: Array
    """In front of a matrix: they undo what stands there. Of an attention: they are its projections' own."""
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
    undoes = ~attention & _flattens(logs, x, upstream)
    owned = ~attention & _flattens(logs, h - x - np.where(undoes[:, None, None], upstream, 0.0), outward)
    taken = {name for use, own in zip(uses, owned, strict=True) if own for name in use.attends}
    lost = np.array([use.name in taken for use in uses])
    return Scalars(
        before=np.where(undoes[:, None, None], upstream, 0.0) + np.where(lost[:, None, None], outward, 0.0),
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
