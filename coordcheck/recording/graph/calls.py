"""A captured forward pass: which torch functions were called, on which tensors, and how they used parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from coordcheck.recording.graph.arguments import first_tensor, is_measured, unflattened
from coordcheck.recording.graph.fans import Channels, Fans, Given
from coordcheck.recording.graph.flow import Node
from coordcheck.recording.graph.functions import Does, does, fans_of, is_linear, made_by, name_of, stack_of
from coordcheck.recording.graph.operands import Operand
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.terms import Terms, only_factor, taken_up

MAX_BLOCKS = 8  # a fused projection, or a stack that is looked into, holds at most so many matrices


class Value:
    """A tensor of a forward pass: what a call gave, or what came from outside. The tensor itself is not kept.

    Args:
        call: the call that gave it; None from outside.
        shape: its shape.
        operand: how it is made from a parameter, if it is made from one alone.
        data: whether it depends on more than parameters and the model's tables.
        learns: whether it asks for a gradient.
        floating: whether it holds floating or complex numbers.
        parameters: what it was computed from, where that is parameters and tables alone.
        modulated: the parameters that it is made of, and that data changed, where it may be a weight still.

    Attributes:
        size: the number of its coordinates.
    """

    __slots__ = ("call", "data", "floating", "learns", "modulated", "operand", "parameters", "shape", "size")

    def __init__(
        self,
        shape: Sequence[int],
        call: Call | None = None,
        *,
        operand: Operand | None = None,
        data: bool = True,
        learns: bool = False,
        floating: bool = True,
        parameters: frozenset[str] = frozenset(),
        modulated: frozenset[str] = frozenset(),
    ) -> None:
        self.call, self.shape, self.operand, self.data = call, tuple(shape), operand, data
        self.learns, self.floating, self.parameters, self.modulated = learns, floating, parameters, modulated
        self.size = math.prod(self.shape)


class Call:
    """One call of a torch function.

    Args:
        name: the function's name.
        leaves: its arguments in a list, with a `Value` in the place of each tensor.
        spec: what puts them together.
        function: the function.
        layer: the path of the module in whose call it was made.
    """

    def __init__(
        self, name: str, leaves: Sequence[Any], spec: Any = None, *, function: Any = None, layer: str = ""
    ) -> None:
        self.name, self.spec, self.function, self.layer = name, spec, function, layer
        self.inputs: dict[int, Value] = {}
        """The tensors among its arguments, by position."""
        self.operands: dict[int, Operand] = {}
        """Those that are made from a parameter."""
        self.activations: dict[int, Value] = {}
        """Those that depend on data, without single numbers."""
        self.made: dict[int, Value] = {}
        """Those that were computed from parameters alone in some other way, and weights that data changed."""
        self.sort(leaves)
        self.outputs: list[Value] = []
        self.view = False
        """Whether what it gives is a view of the tensor that it is about."""
        self.in_place = False
        """Whether it wrote into one of its arguments."""
        self.factor: float | None = None
        """The number that it multiplies that tensor by, if it does only this."""
        self.along: tuple[Tensor, int] | None = None
        """The vector of numbers that it multiplies channels by, and their axis, counted from the end."""
        self.uses: list[UseCall] = []
        """How it uses each of its parameters."""
        self.kept: list[Any] | None = None
        """Copies of its arguments, where it may be called again."""
        self.whole: list[Any] | None = None
        """Copies of all of them, where a weight is made of them that data change."""
        self.rows: Tensor | None = None
        """Some rows of its output, where they say as much as all."""
        self.gradient: Tensor | None = None
        """dL/dh of its first output, once a backward pass has come by."""
        self.scale = 1.0
        """Of a fused attention."""
        self.logits: Tensor | float | None = None
        """Of a product of two activations: its values, or their RMS."""
        self.sides: dict[int, float | Tensor] = {}
        """Of a product of two activations: RMS of what it multiplies, by position."""

    def sort(self, leaves: Sequence[Any]) -> None:
        """Tell its arguments apart by what is known of them."""
        self.leaves = leaves
        self.inputs = {position: leaf for position, leaf in enumerate(self.leaves) if isinstance(leaf, Value)}
        self.operands = {p: value.operand for p, value in self.inputs.items() if value.operand is not None}
        self.activations = {p: v for p, v in self.inputs.items() if v.operand is None and v.data and v.size > 1}
        self.made = {p: v for p, v in self.inputs.items() if v.operand is None and v.parameters}

    def fans(self, position: int) -> Fans | None:
        """How its argument at a position acts, as a matrix; None for one that acts elementwise."""
        return fans_of(self.name, self.given(position))

    def given(self, position: int) -> Given:
        """What is known of it, for a weight at a position."""
        args, kwargs = unflattened(self.leaves, self.spec)
        return Given(self.inputs[position].shape, position, tuple(self.inputs), self.leaves, args, kwargs)

    def __repr__(self) -> str:
        return f"{self.layer}/{self.name}"


class UseCall(Node):
    """One function call with a parameter among its arguments, ready to be called again with other values.

    Args:
        call: the call, with copies of its arguments.
        position: of the parameter, or of what was computed from it, among them.
        operand: how that is made from the parameter.
    """

    def __init__(self, call: Call, position: int, operand: Operand) -> None:
        super().__init__(call.layer, name_of(call.function))
        self.made_by, self.position, self.operand = call, position, operand
        self.others = {p: other for p, other in call.operands.items() if p != position}
        """The call's other parameters, by position."""
        self.fans = call.fans(position)
        self.taken_up: set[tuple[float, bool]] = set()
        """Of the functions that took up the output: the scalar before it, and whether it contracts two activations."""
        self.terms_of: list[tuple[Terms, float]] = []
        """The sums that it is a term of and that are followed as one, with its scalar there."""
        self.behind: set[float] = set()
        """The scalars between a relu, which hands them on, and the functions that take its output up."""
        self.chained = 1.0
        """The scalar that its output is multiplied by before anything else becomes of it."""
        self.owns_scalars = False
        """Whether the scalars between it and an attention are its own: told by what was measured."""
        self.taken: dict[Piece, None] = {}
        """The pieces of the output's channels that were taken."""
        self.parts: tuple[Piece, ...] = ()
        """Those into which it was taken apart: all channels, each once."""
        self.along: Tensor | None = None
        """What each channel of the output is multiplied by, where that is not one number: (channels,)."""
        self.attended: set[Piece] = set()
        """The pieces of the output that are one side of a product of two activations."""
        self.unjudged = ""
        """Why how large its output should be is not known; empty when it is."""
        self.given: tuple[tuple[UseCall | Terms, float], ...] = ()
        """The uses whose outputs its input is, or sums, each times a scalar."""
        self.before = 1.0
        """The scalar that its input was multiplied by last."""

    @property
    def leaves(self) -> list[Any]:
        """Copies of the call's arguments; of a call that a later one stands for, the later one has them."""
        return self.made_by.kept or []

    @property
    def spec(self) -> Any:
        return self.made_by.spec

    @property
    def output(self) -> Tensor | None:
        """Some rows of it, where they say as much as all."""
        return self.made_by.rows if self is self.made_by.uses[0] else None

    @property
    def gradient(self) -> Tensor | None:
        return self.made_by.gradient

    @property
    def parameter(self) -> str:
        return self.operand.parameter

    @property
    def matrix(self) -> bool:
        return self.fans is not None

    @cached_property
    def matrices(self) -> int:
        """How many matrices it holds, each of which acts on inputs of its own; those that data pick are no more."""
        given = self.made_by.given(self.position)
        if self.operand.then is None:
            given = given.without([not stride for stride in self.operand.stride])
        elif self.operand.picked:
            return 1
        return stack_of(self.operation, given)

    @cached_property
    def channels(self) -> Channels | None:
        """Which axes of the output it makes."""
        return made_by(self.operation, self.made_by.given(self.position))

    def multiply(self, numbers: Tensor, axis: int) -> None:
        """Note that the channels of the output, along an axis counted from the end, are multiplied by these numbers."""
        made = self.channels
        if made is None or made.axes != 1 or -made.output != axis:
            return
        if self.made_by.outputs[0].shape[made.output] == len(numbers):
            self.along = numbers if self.along is None else self.along * numbers

    @property
    def own_along(self) -> Tensor | None:
        """The same but for what is one side of a product of two activations: whose that is, is not known."""
        if self.along is None:
            return None
        numbers = self.along.clone()
        for piece in self.attended:
            numbers[piece.places()] = 1.0
        return numbers

    @property
    def pieces(self) -> tuple[int, ...]:
        """Sizes into which the output's channels were split."""
        return tuple(part.size for part in self.parts)

    @property
    def linear(self) -> bool:
        return is_linear(self.operation)

    @cached_property
    def input_position(self) -> int | None:
        """The position of the activation among the arguments: the first floating tensor that is no parameter."""
        added = does(self.operation, Does.ADDED)
        for index, value in self.made_by.inputs.items():
            own = index == self.position or index in self.others or (added and index == 0)
            if not own and value.floating:
                return index
        return None

    @property
    def multiplied(self) -> list[int]:
        """The positions of further activations that it multiplies with the first one."""
        known = [p for p, value in self.made_by.activations.items() if value.floating and p not in self.made_by.made]
        several = self.matrix and does(self.operation, Does.MULTIPLIES) and not does(self.operation, Does.ADDED)
        return [p for p in known if p != self.input_position] if several else []

    @property
    def alone(self) -> bool:
        """Whether the function may be called with a change of the parameter alone, instead of before and after it."""
        given = {p: leaf for p, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)}
        others = [self.leaves[position] for position in self.others]
        inputs = [leaf for p, leaf in given.items() if p != self.position and p not in self.others]
        inputs = [leaf for leaf in inputs if is_measured(leaf)] or inputs  # beside them, ids are places
        only_biases = does(self.operation, Does.BIASED) and all(other.dim() == 1 for other in others)
        itself = self.matrix and not self.operand.curve
        plain = itself and does(self.operation, Does.ALONE) and (not others or only_biases)
        same_type = self.operand.dtype == self.leaves[self.position].dtype
        return plain and same_type and len(inputs) == 1

    @cached_property
    def downstream(self) -> float:
        """The scalar that multiplies the output wherever it is taken up, once the pass is read; no attention's."""
        return only_factor(taken_up(self), self.chained) if self.matrix else 1.0

    @property
    def outward(self) -> float:
        """The scalar between the output and a product of two activations, or behind a relu, where it is one."""
        if not self.matrix or self.downstream != 1.0:
            return 1.0
        factors = {factor for factor, contracted in taken_up(self) if contracted} or self.behind
        return next(iter(factors)) if len(factors) == 1 else 1.0

    @property
    def outside(self) -> float:
        """The scalar that its output is larger by than what it is for; 0 where that is an attention's matter."""
        if not self.owns_scalars:
            return self.downstream
        return 0.0 if any(contracted for _, contracted in taken_up(self)) else self.outward

    @property
    def upstream(self) -> float:
        """The scalar that multiplies the input and does not belong to the output of the matrix before."""
        taken = any(use.matrix and use.downstream != 1.0 for use, _ in self.given)
        return 1.0 if taken or not self.matrix else self.before

    def call(self, values: Mapping[int, Any]) -> Tensor:
        """Call the function again with other arguments at some positions; the first tensor it returns."""
        leaves = [values.get(index, leaf) for index, leaf in enumerate(self.leaves)]
        args, kwargs = unflattened(leaves, self.spec)
        return first_tensor(self.made_by.function(*args, **kwargs))
