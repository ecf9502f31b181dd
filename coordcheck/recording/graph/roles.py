"""What a call is to its parameters: it makes something of one, uses one beside data, or takes none."""

from __future__ import annotations

from enum import Enum

from coordcheck.recording.graph.calls import Call
from coordcheck.recording.graph.functions import Does, does


class Role(Enum):
    """Of one call."""

    PICKS = "takes some matrices of a stack, by places that depend on data"
    DERIVES = "makes something of parameters alone"
    USES = "takes parameters beside data"
    COMPUTES = "computes further from tables, and from what was made of parameters"
    FOLLOWS = "takes no parameter"


def role_of(call: Call) -> Role:
    """The role of a call, by its arguments."""
    first = min(call.operands, default=1)
    picks = does(call.name, Does.PICKS) and first == 0 and len(call.inputs[0].shape) > 2
    if picks and call.activations:
        return Role.PICKS
    if call.operands:
        derives = not call.activations or (does(call.name, Does.MOVES) and first == 0)
        return Role.DERIVES if derives else Role.USES
    several = any(value.size > 1 for value in call.inputs.values())
    return Role.COMPUTES if several and not call.activations else Role.FOLLOWS


def contracts(call: Call) -> bool:
    """Whether a call that takes no parameter is a product of two activations, over an axis."""
    tensors = sum(value.size > 1 for value in call.inputs.values())
    return does(call.name, Does.MULTIPLIES) and 2 <= len(call.activations) == tensors


def averages(call: Call) -> bool:
    """Whether a mean or a sum leaves the last axis, of channels, as it is."""
    if not does(call.name, Does.AVERAGES) or len(call.activations) != 1:
        return False
    (before,), after = call.activations.values(), call.outputs[0]
    return bool(after.shape) and after.shape[-1] == before.shape[-1] and after.size > 1
