"""Matrices whose output is a weight of other functions, as in a hypernetwork; how large it should be is not judged."""

from __future__ import annotations

from collections.abc import Iterator

from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.modulation import makers
from coordcheck.recording.graph.roles import contracts
from coordcheck.recording.graph.splits import KEEPS, Laid

STEPS = 16  # calls between a matrix and the function that its output is a weight of


def generators(call: Call) -> Iterator[UseCall]:
    """The uses whose outputs are weights of a call."""
    if does(call.name, Does.BIASED) and len(call.inputs) > 1:  # (input, weight, bias)
        weight = list(call.inputs.values())[1]
        made = _behind(weight) if weight.data and not weight.modulated else []
        # else it is a product of two activations
        if made and (does(call.name, Does.BY_EXAMPLE) or len(weight.shape) > len(made[0].made_by.outputs[0].shape)):
            yield from made
    elif contracts(call):
        found = [uses for value in call.activations.values() if (uses := _as_matrices(value))]
        if len(found) == 1:  # of two, the channels of each are in groups, as the tokens of an attention are
            yield from found[0]


def added_to(call: Call) -> Iterator[UseCall]:
    """The uses that add a parameter to data, where the sum is multiplied with other data: perhaps as a weight."""
    for value in call.activations.values() if contracts(call) else ():
        for maker in makers(value) if value.modulated else ():
            if does(maker.name, Does.ADDS):
                yield from maker.uses


def _behind(value: Value) -> list[UseCall]:
    """The uses of the matrix whose output a tensor is, or some of it, through functions of every coordinate."""
    for _ in range(STEPS):
        call = value.call
        if call is None or any(use.matrix for use in call.uses):
            return [] if call is None else call.uses
        befores = [before for before in call.activations.values() if before.floating]
        if len(befores) != 1 or not (call.view or does(call.name, KEEPS)):
            return []
        (value,) = befores
    return []


def _as_matrices(value: Value) -> list[UseCall]:
    """The uses that made a tensor both of whose last axes are their channels."""
    made = []
    for use, layout in Laid().of(value).items():
        last = list(zip(layout.shape, layout.stride(), strict=True))[-2:]
        if len(last) == 2 and all(size > 1 and stride for size, stride in last):
            made += use.made_by.uses
    return made
