"""Weights that data change before they are used: times a style, plus what a network or a gradient gave, normalised.

Such a weight is made of a parameter and of data, and it is followed from there to the function that it is a weight of.
A table that is added to activations starts in the same way; it ends where it meets activations of its own size again,
or in the place of an input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from coordcheck.recording.graph.arguments import snapshot
from coordcheck.recording.graph.calls import Call, Value
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.last_uses import LastUses

CHANGES = Does.SCALES | Does.DIVIDES | Does.NEGATES | Does.ADDS | Does.CURVES | Does.JOINS
FOLLOWED = CHANGES | Does.MOVES | Does.AVERAGES


class Modulated:
    """Those of one forward pass; what is needed to make one again is kept.

    Args:
        last: the last uses of parameters, of which those that make such a weight are none.
    """

    def __init__(self, last: LastUses) -> None:
        self._last = last
        self._makers: set[Call] = set()

    def see(self, call: Call, leaves: Sequence[Any], shape: Sequence[int]) -> frozenset[str]:
        """The parameters of which a call makes a tensor of this shape that may be such a weight.

        Args:
            call: the call, whose weights that data changed are found.
            leaves: its arguments.
            shape: of its first output.
        """
        for value in call.made.values():
            for maker in makers(value) if value.modulated else ():
                self._makers.add(maker)
                for use in maker.uses:
                    self._last.drop(use)
        names = frozenset[str]() if call.in_place else modulated(call, shape)
        if names:
            known = {*call.operands, *call.made, *(p for p, value in call.inputs.items() if value.modulated)}
            call.whole = [leaf if at in known else snapshot(leaf) for at, leaf in enumerate(leaves)]
        return names

    def let_go(self, calls: Iterable[Call]) -> None:
        """Give up the copies of calls that made no weight, as where a table is added to activations."""
        for call in calls:
            if call not in self._makers:
                call.whole = None


def modulated(call: Call, shape: Sequence[int]) -> frozenset[str]:
    """The parameters of which a call makes a tensor of this shape, with data, that may be a weight still."""
    size = math.prod(shape)
    before = {value for value in call.activations.values() if value.modulated}
    beside = [value for value in call.activations.values() if not value.modulated]
    if before:
        followed = does(call.name, FOLLOWED) or (call.view and len(call.inputs) == 1)
        names = frozenset[str]().union(*(value.modulated for value in before))
        meets = any(value.size >= size for value in beside) and not all(
            value.size == size and _is_one_for_all(value) for value in before
        )
        return names if followed and not meets else frozenset()
    if not beside or not does(call.name, CHANGES):
        return frozenset()
    known = {position: value for position, value in call.inputs.items() if position in {*call.operands, *call.made}}
    return frozenset[str]().union(*(_names(value) for value in known.values() if _has_rows(value)))


def weights(call: Call) -> dict[int, Value]:
    """The weights of a call that data changed before, by position."""
    known = {position: value for position, value in call.inputs.items() if value.modulated}
    if not known:
        return {}
    if does(call.name, Does.BIASED):  # (input, weight, bias)
        return {position: value for position, value in known.items() if position == list(call.inputs)[1]}
    beside = [value for position, value in call.activations.items() if position not in known]
    if not does(call.name, Does.MULTIPLIES) or not beside:
        return {}
    return {position: value for position, value in known.items() if _is_weight(value)}


def makers(value: Value) -> list[Call]:
    """The calls that made a weight of parameters and data, the last one first."""
    found: list[Call] = []
    waiting = [value]
    while waiting:
        call = waiting.pop().call
        if call is not None and call not in found:
            found.append(call)
            waiting += [given for given in call.inputs.values() if given.modulated]
    return found


def _names(value: Value) -> frozenset[str]:
    return value.parameters if value.operand is None else frozenset({value.operand.parameter})


def _has_rows(value: Value) -> bool:
    return sum(size > 1 for size in value.shape) >= 2


def _is_one_for_all(value: Value) -> bool:
    """Whether a tensor is still of the size of a parameter that it was made of, and not one for each example."""
    return any(
        given.size == value.size
        for call in makers(value)
        for position, given in call.inputs.items()
        if position in {*call.operands, *call.made}
    )


def _is_weight(value: Value) -> bool:
    """Whether what a product takes is a weight rather than activations: no data alone have its shape."""
    if _is_one_for_all(value):
        return True
    mixed = [call for call in makers(value) if call.uses]
    beside = [(given, call) for call in mixed for given in call.activations.values() if not given.modulated]
    return all(given.size < call.outputs[0].size for given, call in beside)
