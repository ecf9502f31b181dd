"""Matrices whose output is a weight of other functions, as in a hypernetwork, or where experts are mixed for a token.

How large that output should be is not known by itself. It is judged as the weight that it is: followed from the matrix
to the function that takes it, where every step in between can be called again with other values of the parameters.
Otherwise it is told as not visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.fans import Channels, einsum_matrix
from coordcheck.recording.graph.functions import Does, does, plain
from coordcheck.recording.graph.modulation import makers
from coordcheck.recording.graph.roles import contracts
from coordcheck.recording.graph.splits import KEEPS, Laid

MAKES_WEIGHTS = "what it makes is a weight of another function, and how large that should be is not judged"
MAY_BE_A_WEIGHT = "it is added to data that are multiplied with other data: whether as a weight is not known"
STEPS = 16  # calls between a matrix and the function that its output is a weight of


def weights(call: Call) -> dict[int, Value]:
    """The weights of a call that matrices made of data, by position, where they can be made again.

    What makes them is noted as what makes weights.
    """
    found = {}
    for position, value in _generated(call):
        steps = _steps(value)
        arguments = [_arguments(step, value) for step, value in steps]
        if not steps or any(each is None for each in arguments):
            continue
        names = frozenset[str]()
        for (step, _), whole in reversed(list(zip(steps, arguments, strict=True))):
            step.whole = whole
            names |= {operand.parameter for operand in step.operands.values()}
            names = names.union(*(given.parameters | given.modulated for given in step.inputs.values()))
            for output in step.outputs:
                output.modulated |= names
        found[position] = value
    return found


def generators(call: Call) -> Iterator[UseCall]:
    """The uses whose outputs are weights of a call."""
    for _, value in _generated(call):
        steps = _steps(value)
        yield from steps[-1][0].uses if steps else ()


def added_to(call: Call) -> Iterator[UseCall]:
    """The uses that add a parameter to data, where the sum is multiplied with other data: perhaps as a weight."""
    for value in call.activations.values() if contracts(call) else ():
        for maker in makers(value) if value.modulated else ():
            if does(maker.name, Does.ADDS):
                yield from maker.uses


def _generated(call: Call) -> list[tuple[int, Value]]:
    """What a call takes for a weight that a matrix made of data, with its position."""
    if does(call.name, Does.BIASED) and len(call.inputs) > 1:  # (input, weight, bias)
        position, weight = list(call.inputs.items())[1]
        steps = _steps(weight) if weight.data else []
        whole = steps and (len(weight.shape) > len(steps[-1][0].outputs[0].shape) or _is_matrix(call, position))
        # else it is a product of two activations
        return [(position, weight)] if whole or (steps and does(call.name, Does.BY_EXAMPLE)) else []
    found = [(p, value) for p, value in call.activations.items() if _is_matrix(call, p)] if contracts(call) else []
    return found if len(found) == 1 else []  # of two, the channels of each are in groups, as the tokens of an attention


def _steps(value: Value) -> list[tuple[Call, Value | None]]:
    """The calls that made a weight, the last first, each with the data that it takes; ends with the matrix's own.

    Between them are functions of every coordinate, of what is as large as the weight; none where others are.
    """
    found: list[tuple[Call, Value | None]] = []
    while value.call is not None and len(found) < STEPS:
        call = value.call
        if any(use.matrix for use in call.uses):
            return [*found, (call, None)]
        befores = [before for before in call.activations.values() if before.floating and before.size == value.size]
        if len(befores) != 1 or not (call.view or does(call.name, KEEPS)):
            return []
        found.append((call, befores[0]))
        (value,) = befores
    return []


def _arguments(call: Call, made: Value | None) -> list[Any] | None:
    """Its arguments, copies of data among them; None where some are not kept, or some of their rows alone.

    Args:
        call: a step.
        made: the one of them that is made by the step before.
    """
    kept: Sequence[Any] = call.whole or call.kept or call.leaves
    for leaf, copy in zip(call.leaves, kept, strict=True):
        known = not isinstance(leaf, Value) or leaf is made or leaf.operand is not None or leaf.parameters
        if not known and not (isinstance(copy, Tensor) and tuple(copy.shape) == leaf.shape):
            return None
    return list(kept)


def _is_matrix(call: Call, position: int) -> bool:
    """Whether what a product takes is a matrix: the axes that it sums over and those it makes are channels of one."""
    value = call.inputs[position]
    axes = einsum_matrix(call.given(position)) if plain(call.name) == "einsum" else [-2, -1]
    return any(
        len(layout.shape) > 1 and all(layout.stride()[axis] or layout.shape[axis] == 1 for axis in axes)
        for layout in _Matrices().of(value).values()
        if len(axes) > 1 and all(layout.shape[axis] > 1 for axis in axes)
    )


class _Matrices(Laid):
    """The stand-ins, with the matrices of a stack among the channels where all take the same input."""

    def channels(self, use: UseCall) -> Channels | None:
        made = super().channels(use)
        given, position = use.made_by.inputs[use.position].shape, use.input_position
        if made is None or plain(use.operation) != "matmul" or made.own != -2 or position is None or len(given) < 3:
            return made
        beside = (1,) * len(given) + use.made_by.inputs[position].shape
        stacked = next((n for n in range(len(given) - 2) if beside[-3 - n] != 1), len(given) - 2)
        return Channels(made.own - stacked, made.output - stacked, 1 + stacked)
