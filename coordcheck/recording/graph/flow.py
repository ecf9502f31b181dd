"""What a tensor depends on: matrix operations and attentions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

MOST = 64  # nodes that a tensor depends on, or uses that it sums, that are followed one by one


class Node:
    """A matrix operation or an attention: what takes up the output of others."""

    def __init__(self, layer: str, operation: str) -> None:
        self.layer = layer
        self.operation = operation
        self.feeds: set[Node] = set()

    @property
    def fed(self) -> set[Node]:
        """The operations and attentions among its `feeds`; of those behind a `Junction` the first ones."""
        found, waiting = set[Node](), [self]
        seen = set[Node]()
        while waiting and len(found) < MOST:
            for node in waiting.pop().feeds - seen:
                seen.add(node)
                waiting.append(node) if isinstance(node, Junction) else found.add(node)
        return found


class Junction(Node):
    """Where a tensor depends on so many nodes that they are followed as one: a residual stream, far down."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        super().__init__("", "")
        for node in nodes:
            node.feeds.add(self)


def joined(flows: Iterable[frozenset[Node]]) -> frozenset[Node]:
    """What a tensor that depends on several others depends on."""
    together = frozenset[Node]().union(*flows)
    return together if len(together) <= MOST else frozenset({Junction(together)})


class AttentionCall(Node):
    """One product of two activations: of queries and keys, when a softmax follows."""

    def __init__(self, layer: str, operation: str) -> None:
        super().__init__(layer, operation)
        self.scale = 1.0
        self.head_size = 1
        self.made_by: Any = None
        """The call."""
        self.given: tuple[int, ...] = ()
        """Where its queries and its keys stand among the arguments of that."""
        self.after = 1.0
        """The scalar between the product and the softmax."""
        self.before = 1.0
        """The part of `scale` between the projections and the product."""
        self.projections: list[tuple[Any, float]] = []
        """The uses whose outputs queries and keys are, each with the scalar behind it."""
        self.met: float | Tensor = 1.0
        """RMS of queries times that of keys, of those of them that no projection's output is, but what became of it."""
        self.logits: Tensor | float | None = None
        """Values, or their RMS."""

    def settle(self) -> None:
        """Leave out the scalars that are a projection's own, once all that takes its output up is known."""
        for use, factor in self.projections:
            if factor not in (0.0, 1.0) and use.downstream == factor:
                self.scale, self.before = self.scale / factor, self.before / factor
        self.projections = []
