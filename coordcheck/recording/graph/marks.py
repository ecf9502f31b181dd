"""What is known of a call's activations, handed on and taken up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.flow import MOST, AttentionCall, Node, joined
from coordcheck.recording.graph.terms import Terms


class Mark(NamedTuple):
    """What is known of a tensor."""

    held: tuple[tuple[UseCall | Terms, float], ...] = ()
    """The uses whose outputs it is, or sums, each times a scalar."""
    product: AttentionCall | None = None
    """The product whose values it is, times `factor`."""
    factor: float = 1.0
    """The scalar that it was multiplied by last."""
    flow: frozenset[Node] = frozenset()
    """The nodes it depends on through no other node."""
    behind: tuple[tuple[UseCall, float], ...] = ()
    """The uses whose outputs went through a relu, of which it is made, each with the scalar since then."""

    def times(self, factor: float) -> Mark:
        held = tuple((use, before * factor) for use, before in self.held)
        behind = tuple((use, before * factor) for use, before in self.behind)
        return self._replace(held=held, factor=self.factor * factor, behind=behind)


def summed(marks: Sequence[Mark]) -> Mark:
    """What is known of a sum, or a concatenation: whatever its terms are, and the scalar that they share."""
    held = {(use, abs(factor)): (use, factor) for mark in marks for use, factor in reversed(mark.held)}
    factors = {abs(mark.factor) for mark in marks}
    terms = tuple(held.values()) if len(held) <= MOST else ((Terms(held.values()), 1.0),)
    behind = tuple(one for mark in marks for one in mark.behind)
    return Mark(held=terms, factor=factors.pop() if len(factors) == 1 else 1.0, behind=behind[:MOST])


NOTHING = Mark()

Known = Mapping[int, Mark]
"""What is known of a call's activations, by position."""


def flow_of(known: Known) -> frozenset[Node]:
    """What the output of a call depends on."""
    return joined(mark.flow for mark in known.values())


def take_up(marks: Iterable[Mark], contracted: bool = False, cancelled: bool = False) -> None:
    """Note the scalars before a function; those that all terms share are cancelled by a normalisation.

    Args:
        marks: what is known of its arguments.
        contracted: whether it is a product of two activations.
        cancelled: whether it is a normalisation.
    """
    for mark in marks:
        shared = mark.factor if cancelled and mark.factor else 1.0
        for use, factor in mark.held:
            use.taken_up.add((factor / shared, contracted))
        for behind, factor in mark.behind:
            behind.behind.add(factor / shared)
