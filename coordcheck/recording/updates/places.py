"""Where a multiplier of one use, block or attention can be put, in the words of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.operands import Operand
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.places import Place, channels_of
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.updates.parameter_uses import ParameterUse
from coordcheck.recording.updates.replays import Block, Layer, Slice
from coordcheck.runs.words import Through


def placed(use: ParameterUse, tracer: Tracer, initial: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a record's `Use` that say where a second use, or a block, can be multiplied by itself."""
    call, block = use.call, use.block
    if call is None:
        return {"channels": _of_slice(block.operand, initial[use.parameter])} if isinstance(block, Slice) else {}
    if block is None:
        normed = use.made is not None and not use.hidden and use.made.through is Through.NORMED
        alone = call.matrix and (use.name != use.parameter or normed)
        return _fields(tracer.places.of_input(call), ()) if alone else {}
    if isinstance(block, Slice):
        return {"channels": _of_slice(block.operand, initial[use.parameter])}
    if isinstance(block, Layer):
        values = initial[use.parameter]
        return {"channels": (values.dim(), 0, 1, values.shape[0], block.number, 1, 1)}
    dim, every = _axis(block, initial[use.parameter]), channels_of(call)
    place = tracer.places.of_output(call) if dim else None
    axis = 0 if place is None else place.channels[0]
    return _fields(place, (dim, axis, block.made.axes, every, *_numbers(block.piece)) if dim else ())


def placed_scores(product: AttentionCall, tracer: Tracer) -> dict[str, Any]:
    """Likewise of an attention: where its queries, or its keys, are multiplied."""
    place = tracer.places.of_scores(product)
    if place is None or place.piece is None:
        return _fields(place, ())
    return _fields(place, (0, *place.channels, place.every, *_numbers(place.piece)))


def _fields(place: Place | None, channels: tuple[int, ...]) -> dict[str, Any]:
    found = {} if place is None else {"module": place.path, "side": place.side}
    return {**found, "channels": channels}


def _numbers(piece: Piece) -> tuple[int, ...]:
    return piece.start, *(number for axis in piece.axes for number in axis)


def _axis(block: Block, values: Tensor) -> int:
    """The last axis of a parameter that the channels are of, counted from the end; 0 where it is none as it stands."""
    size, stride, last = block.operand.size, block.operand.stride, block.made.own + block.made.axes - 1
    if values.numel() == 0 or not values.is_contiguous() or block.operand.offset:
        return 0
    fits = (a for a in range(values.dim()) if (values.shape[a], values.stride(a)) == (size[last], stride[last]))
    return next((values.dim() - axis for axis in fits), 0)


def _of_slice(operand: Operand, values: Tensor) -> tuple[int, ...]:
    """The matrices along the first axis of a stack that a call takes."""
    every = values.stride(0) if values.dim() and values.is_contiguous() else 0
    count = 1
    for size in operand.size:
        count *= size
    if not every or operand.offset % every or count % every:
        return ()
    return values.dim(), 0, 1, values.shape[0], operand.offset // every, count // every, 1
