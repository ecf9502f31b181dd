"""How a forward pass used a parameter, or computed attention: one function call, ready to be called again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coordcheck.recording.graph import operations as ops
from coordcheck.recording.graph.arguments import first_tensor, unflattened
from coordcheck.recording.graph.fans import Fans, is_linear
from coordcheck.recording.graph.nodes import MOST, AttentionCall, Node

MAX_BLOCKS = 8  # a fused projection, or a stack that is looked into, holds at most so many matrices


class Operand(NamedTuple):
    """How a tensor is made from a parameter: a view of it, times a scalar."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    factor: float = 1.0
    dtype: torch.dtype = torch.float32
    then: Callable[[Tensor], Tensor] | None = None
    """What is made of it further: the matrices of some experts picked, or a function of every coordinate."""
    curve: str = ""
    """The first function of every coordinate that it went through, such as exp; empty where it is in proportion."""

    def of(self, values: Tensor) -> Tensor:
        """The tensor made in the same way from other values of the parameter's own shape and strides."""
        view = values.as_strided(self.size, self.stride, values.storage_offset() + self.offset)
        view = view if self.factor == 1.0 else view * self.factor
        return view if self.then is None else self.then(view)

    def made(self, function: Any, leaves: Sequence[Any], spec: Any, position: int = 0, curve: str = "") -> Operand:
        """The operand that a function makes of this one, its argument at `position`."""
        before, rest = self.then, list(leaves)
        rest[position] = None  # not to keep it: what is called again has other values

        def then(values: Tensor) -> Tensor:
            given = [*rest]
            given[position] = values if before is None else before(values)
            args, kwargs = unflattened(given, spec)
            return first_tensor(function(*args, **kwargs))

        return self._replace(then=then, curve=self.curve or curve)


class Terms:
    """Many uses whose outputs one tensor sums, held as one: else each block would look at all those before it.

    Args:
        held: each with the scalar that its output is multiplied by.
    """

    matrix = True
    fans = None

    def __init__(self, held: Iterable[tuple[UseCall | Terms, float]]) -> None:
        self.taken_up: set[tuple[float, bool]] = set()
        """Of the functions that took up the sum: the scalar before it, and whether it contracts two activations."""
        self.terms_of: list[tuple[Terms, float]] = []
        """Further sums that it is a term of, with its scalar there."""
        for use, factor in held:
            use.terms_of.append((self, factor))

    @property
    def downstream(self) -> float:
        """As of a use."""
        return _only_factor(taken_up(self))


def taken_up(term: UseCall | Terms) -> set[tuple[float, bool]]:
    """All functions that took up an output, by itself or in a sum: the scalar before each, and whether it contracts."""
    found, waiting = set[tuple[float, bool]](), [(term, 1.0)]
    while waiting:
        one, before = waiting.pop()
        found.update((before * factor, contracted) for factor, contracted in one.taken_up)
        waiting += [(terms, before * factor) for terms, factor in one.terms_of]
    return found


def _only_factor(taken: set[tuple[float, bool]]) -> float:
    """The scalar before all of those functions, where it is one and no attention's."""
    factors = {factor for factor, _ in taken}
    return factors.pop() if len(factors) == 1 and not any(contracted for _, contracted in taken) else 1.0


class UseCall(Node):
    """One function call with a parameter among its arguments, ready to be called again with other values."""

    def __init__(
        self, operand: Operand, position: int, function: Any, layer: str, leaves: list[Any], spec: Any
    ) -> None:
        super().__init__(layer, ops.name_of(function))
        self.operand, self.position = operand, position
        self.function, self.leaves, self.spec = function, leaves, spec
        self.fans: Fans | None = None
        self.others: dict[int, Operand] = {}
        """The call's other parameters, by position."""
        self.taken_up: set[tuple[float, bool]] = set()
        """Of the functions that took up the output: the scalar before it, and whether it contracts two activations."""
        self.terms_of: list[tuple[Terms, float]] = []
        """The sums that it is a term of and that are followed as one, with its scalar there."""
        self.pieces: tuple[int, ...] = ()
        """Sizes into which the output's channels were split."""
        self.output: Tensor | None = None
        """Some rows of it, where they say as much as all."""
        self.gradient: Tensor | None = None
        self.source: Mark | None = None
        self.rank = 0
        """Axes of the output."""

    @property
    def parameter(self) -> str:
        return self.operand.parameter

    @property
    def matrix(self) -> bool:
        return self.fans is not None

    @property
    def linear(self) -> bool:
        return is_linear(self.operation)

    @cached_property
    def input_position(self) -> int | None:
        """The position of the activation among the arguments: the first floating tensor that is no parameter."""
        for index, leaf in enumerate(self.leaves):
            own = index == self.position or index in self.others or (self.operation in ops.ADDED and index == 0)
            if not own and isinstance(leaf, Tensor) and leaf.is_floating_point():
                return index
        return None

    @property
    def alone(self) -> bool:
        """Whether the function may be called with a change of the parameter alone, instead of before and after it."""
        given = {p: leaf for p, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)}
        others = [self.leaves[position] for position in self.others]
        inputs = [leaf for p, leaf in given.items() if p != self.position and p not in self.others]
        inputs = [leaf for leaf in inputs if leaf.is_floating_point()] or inputs  # beside them, ids are places
        only_biases = self.operation in ops.BIASED and all(other.dim() == 1 for other in others)
        plain = self.matrix and self.operation in ops.ALONE and (not others or only_biases)
        same_type = self.operand.dtype == self.leaves[self.position].dtype
        return plain and same_type and len(inputs) == 1

    @property
    def downstream(self) -> float:
        """The scalar that multiplies the output wherever it is taken up, and that is no attention's scale."""
        return _only_factor(taken_up(self)) if self.matrix else 1.0

    @property
    def upstream(self) -> float:
        """The scalar that multiplies the input and does not belong to the output of the matrix before."""
        if not self.matrix or self.source is None:
            return 1.0
        taken = any(use.matrix and use.downstream != 1.0 for use, _ in self.source.held)
        return 1.0 if taken else self.source.factor

    def call(self, values: Mapping[int, Any]) -> Tensor:
        """Call the function again with other arguments at some positions; the first tensor it returns."""
        leaves = [values.get(index, leaf) for index, leaf in enumerate(self.leaves)]
        args, kwargs = unflattened(leaves, self.spec)
        return first_tensor(self.function(*args, **kwargs))


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

    def times(self, factor: float) -> Mark:
        held = tuple((use, before * factor) for use, before in self.held)
        return self._replace(held=held, factor=self.factor * factor)


def summed(marks: Sequence[Mark]) -> Mark:
    """What is known of a sum, or a concatenation: whatever its terms are, and the scalar that they share."""
    held = {(use, abs(factor)): (use, factor) for mark in marks for use, factor in reversed(mark.held)}
    factors = {abs(mark.factor) for mark in marks}
    terms = tuple(held.values()) if len(held) <= MOST else ((Terms(held.values()), 1.0),)
    return Mark(held=terms, factor=factors.pop() if len(factors) == 1 else 1.0)


COMPUTED = "computed"  # the mark of a tensor that was computed from parameters alone, in some other way


class ModuleCall(NamedTuple):
    """One module call, kept for parameters that no function was seen to take."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    random_state: Tensor
