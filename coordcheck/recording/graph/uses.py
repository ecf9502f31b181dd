"""How a forward pass used a parameter, or computed attention: one function call, ready to be called again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from coordcheck.recording import scales
from coordcheck.recording.graph import operations as ops
from coordcheck.recording.graph.operations import Fans
from coordcheck.recording.scales import FEWEST_EXAMPLES, FEWEST_ROWS

QUERY_ROWS = 64  # queries of a long sequence for which logits are rebuilt
MASKED = -1e4  # an additive mask below this hides the position
MOST = 64  # nodes that a tensor depends on, or uses that it sums, that are followed one by one
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
        return ops.is_linear(self.operation)

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


class AttentionCall(Node):
    """One product of two activations: of queries and keys, when a softmax follows."""

    def __init__(self, layer: str, operation: str) -> None:
        super().__init__(layer, operation)
        self.scale = 1.0
        self.head_size = 1
        self.places: tuple[int, int] | None = None
        """The positions of queries and keys among the arguments; None for a fused attention."""
        self.after = 1.0
        """The scalar between the product and the softmax."""
        self.logits: Tensor | float | None = None
        """Values, or their RMS."""


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


def fused_arguments(leaves: Sequence[Any], spec: Any) -> dict[str, Any]:
    """The arguments of a `scaled_dot_product_attention` call by name."""
    args, kwargs = unflattened(leaves, spec)
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def fused_logits(given: Mapping[str, Any], scale: float) -> Tensor:
    """The logits q k^T * scale of one `scaled_dot_product_attention` call, masked ones left out: (logits,).

    Long sequences are looked at on `QUERY_ROWS` queries spread over them.
    """
    logits, seen = _logits(given, QUERY_ROWS)
    return (logits * scale)[seen.expand_as(logits)]


def fused_rms(given: Mapping[str, Any], scale: float) -> float | Tensor:
    """The RMS of these logits, for a few examples: which does not wait for a device."""
    logits, seen = _logits(_first_examples(given), FEWEST_ROWS)
    count = seen.expand_as(logits).sum() if seen.dim() > 2 else seen.sum() * (logits.numel() // seen.numel())
    return scales.norm(logits * seen) * (abs(scale) / count.clamp(min=1).sqrt())


def _logits(given: Mapping[str, Any], most: int) -> tuple[Tensor, Tensor]:
    """The logits of at most so many queries before they are scaled, and which of them are not masked."""
    query, key = given["query"].detach(), given["key"].detach()
    length = query.shape[-2]
    rows, seen = _positions(length, key.shape[-2], most, bool(given.get("is_causal")), query.device)
    query = query if length <= most else query.index_select(-2, rows)
    if query.dim() == 4 and key.shape[-3] != query.shape[-3]:  # (batch, heads, time, D): grouped queries
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = (query @ key.transpose(-2, -1)).float()
    mask = given.get("attn_mask")
    if mask is not None:
        allowed = mask if mask.dtype is torch.bool else mask > MASKED
        allowed = allowed[..., rows, :] if allowed.shape[-2] == length else allowed
        seen = seen & allowed
    return logits, seen


@lru_cache(maxsize=64)
def _positions(length: int, keys: int, most: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """At most so many queries, spread over a sequence, and which keys each of them sees: (rows,), (rows, keys)."""
    rows = torch.arange(length, device=device)
    if length > most:
        rows = (torch.arange(most, device=device) * length) // most
    if causal:
        return rows, rows[:, None] >= torch.arange(keys, device=device)[None, :]
    return rows, torch.ones(len(rows), keys, dtype=torch.bool, device=device)


def _first_examples(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an attention for a few examples of its batch: (batch, heads, time, D)."""
    batch = given["query"].shape[0]
    few = {
        name: tensor[:FEWEST_EXAMPLES]
        for name, tensor in given.items()
        if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[0] == batch
    }
    return {**given, **few}


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a function's or module's output."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def first_tensor(value: Any) -> Tensor:
    """The first floating tensor in a function's or module's output.

    Raises:
        ValueError: there is none.
    """
    for tensor in tensors_in(value):
        if tensor.is_floating_point():
            return tensor
    raise ValueError("no floating tensor in the output")


class Flat(NamedTuple):
    """How plain arguments lie in a list: so many by place, then those with a name."""

    places: int
    names: tuple[str, ...]


_NESTED = (list, tuple, dict)


def flattened(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The arguments of a call in a list, with what `unflattened` needs.

    Most calls of torch functions take no containers, and these are taken apart by hand, which is faster.
    """
    if "input" in kwargs:  # where arguments are told by their place, the input comes first
        kwargs = {"input": kwargs["input"], **kwargs}
    leaves = [*args, *kwargs.values()]
    if any(isinstance(leaf, _NESTED) and not _sizes(leaf) for leaf in leaves):
        return tree_flatten((tuple(args), dict(kwargs)))
    return leaves, Flat(len(args), tuple(kwargs))


def _sizes(nested: Any) -> bool:
    """Whether it is a plain tuple of numbers, which is one argument as it is."""
    return type(nested) in (tuple, torch.Size) and all(type(item) is int for item in nested)


def unflattened(leaves: Sequence[Any], spec: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments that `flattened` put into a list."""
    if isinstance(spec, Flat):
        return leaves[: spec.places], dict(zip(spec.names, leaves[spec.places :], strict=True))
    args, kwargs = tree_unflatten(list(leaves), spec)
    return args, kwargs


def snapshot(value: Any, copy: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of every tensor in nested arguments, which later in-place operations do not change."""
    if isinstance(value, Tensor):
        return copy(value.detach())
    leaves, spec = tree_flatten(value)
    return tree_unflatten([copy(leaf.detach()) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
