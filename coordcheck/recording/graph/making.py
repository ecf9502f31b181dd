"""Weights that are computed from parameters: masked, noised, normalised, merged, joined; and computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from coordcheck.recording.graph.arguments import doubled, tensors_in, unflattened
from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.operands import MADE, Operand


def operands_of(value: Value, parameters: Mapping[str, Tensor]) -> Iterator[Operand]:
    """How a tensor that was computed from parameters is made from each of them."""
    for name in sorted(value.parameters | value.modulated):
        own = parameters[name]
        then = partial(_made, value, name)
        yield Operand(name, tuple(own.shape), own.stride(), 0, 1.0, own.dtype, then, MADE)


def uses_of(call: Call, parameters: Mapping[str, Tensor]) -> list[UseCall]:
    """How a call uses its parameters, and those that its weights were made of."""
    uses = [UseCall(call, position, operand) for position, operand in call.operands.items()]
    for position, value in call.made.items():
        uses += [UseCall(call, position, operand) for operand in operands_of(value, parameters)]
    for use in uses:
        if use.matrix and use.operand.curve:  # how large a function of a matrix is depends on more than its scale
            use.operand = use.operand._replace(curve=MADE)
    return uses


def _made(value: Value, name: str, values: Tensor, others: Mapping[str, Tensor]) -> Tensor:
    return computed(value, {**others, name: values}, {})


def computed(value: Value, parameters: Mapping[str, Tensor], known: dict[Value, Tensor]) -> Tensor:
    """A tensor computed again, in double precision, from values of the parameters that it was computed from.

    Args:
        value: the tensor.
        parameters: by name.
        known: what was computed already.
    """
    if value in known:
        return known[value]
    if value.operand is not None:
        found = doubled(value.operand.of(parameters[value.operand.parameter], parameters))
    else:
        found = _called(value, parameters, known)
    known[value] = found
    return found


def _called(value: Value, parameters: Mapping[str, Tensor], known: dict[Value, Tensor]) -> Tensor:
    call = value.call
    all_kept = None if call is None else call.whole or call.kept
    if call is None or all_kept is None:
        raise ValueError("what a weight is computed from was not kept")
    leaves: list[Any] = []
    for leaf, kept in zip(call.leaves, all_kept, strict=True):
        made = isinstance(leaf, Value) and (leaf.operand is not None or bool(leaf.parameters | leaf.modulated))
        given = computed(leaf, parameters, known) if made else doubled(kept)
        # what is written into stays as it was for others that take it
        leaves.append(given.clone() if made and call.in_place else given)
    args, kwargs = unflattened(leaves, call.spec)
    return tensors_in(call.function(*args, **kwargs))[call.outputs.index(value)]
