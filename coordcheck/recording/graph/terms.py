"""The scalars behind a matrix: by itself, and in the sums that it is a term of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Term(Protocol):
    """The use of a matrix, or many of them held as one."""

    taken_up: set[tuple[float, bool]]
    terms_of: list[tuple[Terms, float]]


class Terms:
    """Many uses whose outputs one tensor sums, held as one: else each block would look at all those before it.

    Args:
        held: each with the scalar that its output is multiplied by.
    """

    matrix = True
    fans = None

    def __init__(self, held: Iterable[tuple[Term, float]]) -> None:
        self.taken_up: set[tuple[float, bool]] = set()
        """Of the functions that took up the sum: the scalar before it, and whether it contracts two activations."""
        self.terms_of: list[tuple[Terms, float]] = []
        """Further sums that it is a term of, with its scalar there."""
        for use, factor in held:
            use.terms_of.append((self, factor))

    @property
    def downstream(self) -> float:
        """As of a use."""
        return only_factor(taken_up(self))

    outside = downstream


def taken_up(term: Term) -> set[tuple[float, bool]]:
    """All functions that took up an output, by itself or in a sum: the scalar before each, and whether it contracts."""
    found, waiting = set[tuple[float, bool]](), [(term, 1.0)]
    while waiting:
        one, before = waiting.pop()
        found.update((before * factor, contracted) for factor, contracted in one.taken_up)
        waiting += [(terms, before * factor) for terms, factor in one.terms_of]
    return found


def only_factor(taken: set[tuple[float, bool]], chained: float = 1.0) -> float:
    """The scalar before all of those functions, and no attention's; where they differ, what comes before all else.

    One that stands before values as well, as of a fused projection, is no scale of an attention's logits.

    >>> only_factor({(0.5, True)}), only_factor({(0.5, True), (0.5, False)}), only_factor({(0.5, True), (1.0, False)})
    (1.0, 0.5, 1.0)
    """
    factors, contracted = {factor for factor, _ in taken}, {contracted for _, contracted in taken}
    if len(factors) == 1 and contracted != {True}:
        return factors.pop()
    return 1.0 if True in contracted else chained
