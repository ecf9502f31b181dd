"""What a call is to its parameters: it makes something of one, uses one beside data, or takes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from coordcheck.recording.graph.calls import Call, Value
from coordcheck.recording.graph.functions import TIMES_OR_OVER, Does, does, plain


class CallRole(Enum):
    """Of one call."""

    PICKS = "takes some matrices of a stack, by places that depend on data"
    DERIVES = "makes something of parameters alone"
    USES = "takes parameters beside data"
    COMPUTES = "computes further from tables, and from what was made of parameters"
    FOLLOWS = "takes no parameter"


def role_of(call: Call) -> CallRole:
    """The role of a call, by its arguments."""
    if does(call.name, Does.DIFFERENTIATES):
        return CallRole.FOLLOWS
    parametric = {*call.operands, *call.made}
    if parametric:
        first = min(parametric)
        picks = first == 0 and len(call.inputs[0].shape) > 2 and does(call.name, Does.PICKS)
        if picks and call.activations and first in call.operands:
            return CallRole.PICKS
        derives = not call.activations or (first == 0 and does(call.name, Does.MOVES))
        return CallRole.DERIVES if derives else CallRole.USES
    several = any(value.size > 1 for value in call.inputs.values())
    return CallRole.COMPUTES if several and not call.activations else CallRole.FOLLOWS


def contracts(call: Call) -> bool:
    """Whether a call that takes no parameter is a product of two activations, over an axis."""
    if len(call.activations) < 2 or not does(call.name, Does.MULTIPLIES):
        return False
    return len(call.activations) == sum(value.size > 1 for value in call.inputs.values())


def averages(call: Call) -> bool:
    """Whether a mean or a sum leaves the last axis, of channels, as it is."""
    if not does(call.name, Does.AVERAGES) or len(call.activations) != 1:
        return False
    (before,), after = call.activations.values(), call.outputs[0]
    return bool(after.shape) and after.shape[-1] == before.shape[-1] and after.size > 1


INVERSES = frozenset({"rsqrt", "reciprocal", "rdiv", "rtruediv", "pow"})
STEPS = 16  # calls between a tensor and its own norm: (x - mean) * rsqrt(var + eps), in some other precision


def by_own_norm(call: Call) -> int | None:
    """The position of what a call divides by a norm of itself, as in a normalisation that is written out.

    The norm is one number for each row: what the row is multiplied by before changes nothing.
    """
    if not does(call.name, TIMES_OR_OVER) or len(call.inputs) != 2:
        return None
    for position, norm in ((0, 1), (1, 0)):
        whole, other = call.inputs.get(position), call.inputs.get(norm)
        if whole is None or other is None or position not in call.activations:
            continue
        divides = does(call.name, Does.DIVIDES) or _inverts(other)
        if divides and _is_per_row(other, whole) and _depends(other, _same(whole)):
            return position
    return None


def _inverts(norm: Value) -> bool:
    """Whether a number for each row is one over something: what it multiplies is divided."""
    while norm.call is not None and len(norm.call.inputs) == 1:
        if plain(norm.call.name) in INVERSES:
            return True
        if norm.call.factor is None and not norm.call.view and not does(norm.call.name, Does.MOVES):
            return False
        (norm,) = norm.call.inputs.values()
    return False


def _is_per_row(norm: Value, whole: Value) -> bool:
    return len(norm.shape) <= len(whole.shape) and norm.shape[-1:] == (1,) and whole.shape[-1] > 1


def _same(value: Value) -> set[Value]:
    """A tensor, and those that it holds the values of, in another precision or place."""
    found = {value}
    while value.call is not None and len(value.call.inputs) == 1:
        if not (value.call.view or does(value.call.name, Does.MOVES)):
            break
        (value,) = value.call.inputs.values()
        found.add(value)
    return found


def _depends(value: Value, on: set[Value]) -> bool:
    """Whether a tensor was computed from one of some others, through no parameter, in a few steps."""
    waiting, steps = [value], 0
    while waiting and steps < STEPS:
        call = waiting.pop().call
        steps += 1
        if call is None or call.uses:
            continue
        if any(given in on for given in call.inputs.values()):
            return True
        waiting += call.inputs.values()
    return False


def summarizes(call: Call, users: Mapping[Value, Sequence[Call]], steps: int = STEPS) -> bool:
    """Whether all that becomes of what a call gives is one number for each row, as a mean or a norm."""
    (before,) = call.activations.values() if len(call.activations) == 1 else (None,)
    if before is None or call.uses or not steps or not before.shape:
        return False
    if all(value.shape[-1:] == (1,) and before.shape[-1] > 1 for value in call.outputs):
        return True
    takers = [taker for value in call.outputs for taker in users.get(value, ())]
    return bool(takers) and all(summarizes(taker, users, steps - 1) for taker in takers)


def is_normed(value: Value) -> bool:
    """Whether a tensor was normalised since a matrix made it, as queries and keys may be."""
    waiting, steps = [value], 0
    while waiting and steps < 2 * STEPS:
        call = waiting.pop(0).call
        steps += 1
        if call is None or any(use.matrix for use in call.uses):
            continue
        if does(call.name, Does.CANCELS) or by_own_norm(call) is not None:
            return True
        waiting += call.activations.values()
    return False
