"""What a call makes of the values that it was given: the number that it multiplies by, and whether it copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coordcheck.recording.graph.arguments import is_measured
from coordcheck.recording.graph.calls import Call, Value
from coordcheck.recording.graph.functions import TIMES_OR_OVER, Does, does
from coordcheck.recording.graph.operands import Operand


def factor_of(name: str, leaves: Sequence[Any], tensors: Mapping[int, Tensor]) -> float | None:
    """The number that this call multiplies its only tensor by; None when it does something else."""
    if len(tensors) != 1:
        return None
    if does(name, Does.NEGATES):
        return -1.0
    if not does(name, TIMES_OR_OVER) or len(leaves) != 2:
        return None
    numbers = [
        leaf
        for position, leaf in enumerate(leaves)
        if position not in tensors and (isinstance(leaf, (int, float)) or _is_number(leaf))
    ]
    if len(numbers) != 1 or isinstance(numbers[0], bool):
        return None
    number = _number(numbers[0])
    if does(name, Does.SCALES):
        return number
    return 1 / number if 0 in tensors and number != 0 else None


def _number(value: Any) -> float:
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def _is_number(leaf: Any) -> bool:
    """A tensor that holds one number, perhaps in many places."""
    if not isinstance(leaf, Tensor) or leaf.requires_grad or not leaf.is_floating_point() or not leaf.numel():
        return False
    return leaf.numel() == 1 or bool((leaf == leaf.flatten()[0]).all())


def shares_storage(tensor: Tensor, made: Tensor) -> bool:
    """Whether a tensor is a view of another."""
    if any(t.layout is not torch.strided for t in (tensor, made)):
        return False
    return made.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def learned_factor(call: Call, leaves: Sequence[Any]) -> float | None:
    """The initial value of a learned scalar that a call multiplies by."""
    learned = [leaves[position] for position in call.operands if leaves[position].numel() == 1]
    if not learned or len(call.operands) > 1 or not does(call.name, Does.SCALES):
        return None
    return float(learned[0].detach())


def without_number(call: Call, tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    """The two tensors of a product without one that holds a single number in all places, and was made for it."""
    if len(tensors) != 2 or not does(call.name, TIMES_OR_OVER):
        return tensors
    fixed = [p for p, tensor in tensors.items() if _is_fresh(call.inputs[p]) and not tensor.requires_grad]
    return {p: t for p, t in tensors.items() if p not in fixed[:1] or not _is_number(t)}


MOST_NUMBERS = 8  # in a vector of numbers, each of which many channels are multiplied by


def along(call: Call, tensors: Mapping[int, Tensor]) -> tuple[Tensor, int] | None:
    """A vector of a few numbers that a call multiplies channels by, and the axis of these, counted from the end."""
    if len(tensors) != 2 or not does(call.name, Does.SCALES):
        return None
    for position, tensor in tensors.items():
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        fixed = len(axes) == 1 and not tensor.requires_grad and tensor.is_floating_point()
        if fixed and _is_fresh(call.inputs[position]) and 1 < len(tensor.unique()) <= MOST_NUMBERS:
            return tensor.detach().flatten(), tensor.dim() - axes[0]
    return None


def _is_fresh(value: Value) -> bool:
    """Whether nothing was computed yet of a tensor: it came from outside, or was filled with numbers."""
    while value.call is not None and len(value.call.inputs) == 1:
        if not (value.call.view or does(value.call.name, Does.MOVES)):
            return False
        (value,) = value.call.inputs.values()
    return value.call is None or not value.call.inputs


def derived(call: Call, leaves: Sequence[Any], made: Tensor) -> Operand | None:
    """How the output of a call that takes no data is made from its parameter, where it is made from one alone.

    Args:
        call: the call.
        leaves: its arguments as they were before it.
        made: its first output, which is no view of the parameter itself: those are known by their storage.
    """
    (position, operand), *more = call.operands.items()
    tensor = leaves[position]
    alone = not more and not call.in_place and not _values_beside(leaves, position)
    curve, moves = does(call.name, Does.CURVES), does(call.name, Does.MOVES)
    if call.factor is not None and not operand.curve:
        return operand._replace(factor=operand.factor * call.factor)
    if alone and (curve or (operand.then and (call.view or moves or call.factor))):
        return operand.through(call.function, leaves, call.spec, position, call.name if curve else "")
    if operand.then is None and moves and tuple(made.shape) == operand.size:
        return operand
    if alone and moves and not call.view:  # a copy in another shape
        return operand.through(call.function, leaves, call.spec, position)
    if operand.then is None and not more and tensor.stride() == operand.stride and call.view:
        offset = operand.offset + int(made.storage_offset() - tensor.storage_offset())
        return operand._replace(size=tuple(made.shape), stride=tuple(made.stride()), offset=offset)
    return None


def _values_beside(leaves: Sequence[Any], position: int) -> bool:
    """Whether a call takes another tensor of numbers with a scale; places to pick from are none."""
    others = (leaf for p, leaf in enumerate(leaves) if p != position)
    return any(isinstance(leaf, Tensor) and is_measured(leaf) for leaf in others)
