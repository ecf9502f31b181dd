"""Into which pieces the channels that a matrix makes are taken apart: thirds, every other one, some of each head.

Views say which: they are called once more on a stand-in for the matrix's output that has no memory, in which all
channels are numbered by their places. Its strides are those of the channels, and 0 along examples and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coordcheck.recording.graph.arguments import tensors_in, unflattened
from coordcheck.recording.graph.calls import MAX_BLOCKS, Call, UseCall, Value
from coordcheck.recording.graph.fans import Channels
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.pieces import Piece

STEPS = 16  # calls between a matrix and where its output is taken apart
TERMS = 2  # matrices of a sum that is taken apart: of an input and of a state
KEEPS = Does.SCALES | Does.DIVIDES | Does.NEGATES | Does.ADDS | Does.CURVES | Does.MOVES  # channels where they are


class Laid(dict[Value, dict[UseCall, Tensor]]):
    """The stand-in of a tensor for the output of each matrix all of whose channels it holds, as far as is known."""

    def of(self, value: Value, steps: int = STEPS) -> dict[UseCall, Tensor]:
        if value not in self:
            self[value] = self._of(value, steps)
        return self[value]

    def channels(self, use: UseCall) -> Channels | None:
        """Which axes of its output a matrix makes."""
        return use.channels

    def _of(self, value: Value, steps: int) -> dict[UseCall, Tensor]:
        call = value.call
        if call is None or not steps:
            return {}
        matrices = [use for use in call.uses if use.matrix]
        if matrices:
            known = [(use, made) for use in matrices if (made := self.channels(use)) is not None]
            return {use: _numbered(value.shape, made) for use, made in known if len(matrices) == 1}
        befores = [before for before in call.activations.values() if before.size == value.size]
        if call.along is not None or does(call.name, Does.MOVES):  # others give numbers, or a shape
            befores = befores[:1]
        found = {use: layout for before in befores for use, layout in self.of(before, steps - 1).items()}
        if does(call.name, KEEPS) and all(before.shape == value.shape for before in befores):
            return found
        return {use: views[0] for use, layout in found.items() if (views := called(call, layout))}


class Parts(Laid):
    """The stand-ins of parts of a matrix' output as well."""

    def _of(self, value: Value, steps: int) -> dict[UseCall, Tensor]:
        call = value.call
        if call is None or not steps or call.uses or not does(call.name, Does.SPLITS) or len(call.activations) != 1:
            return super()._of(value, steps)
        (before,) = call.activations.values()
        place, found = call.outputs.index(value), dict[UseCall, Tensor]()
        for use, layout in self.of(before, steps - 1).items():
            views = called(call, layout)
            if len(views) == len(call.outputs):
                found[use] = views[place]
        return found


def multiplied(value: Value, use: UseCall) -> float:
    """What the channels of a matrix that one side of a product holds are multiplied by, where that is one number."""
    if use.along is None:
        return 1.0
    parts, waiting, found = Parts(), [value], set[Piece]()
    for _ in range(4 * STEPS):  # rotary positions take several parts, and join them again
        if not waiting:
            break
        one = waiting.pop()
        layout = parts.of(one).get(use)
        if layout is not None:
            found.add(piece_of(layout))
        elif one.call is not None and not one.call.uses:
            waiting += list(one.call.activations.values())[: 1 if does(one.call.name, Does.MOVES) else None]
    factors = {factor_along(use.along, piece) for piece in found}
    if len(factors) != 1:
        return 1.0
    places = {int(place) for piece in found for place in piece.places()}
    use.attended |= {*found, *(part for part in use.parts if places == set(part.places().tolist()))}
    return factors.pop()


def factor_along(numbers: Tensor, piece: Piece) -> float:
    """What a piece of the channels is multiplied by, where that is one number; else 1."""
    own = numbers[piece.places()]
    return float(own[0]) if bool((own == own[0]).all()) else 1.0


def take_apart(call: Call) -> None:
    """Note which pieces of a matrix's output a call takes; with earlier ones, they may be all of them."""
    if not does(call.name, Does.SPLITS) or len(call.activations) != 1:
        return
    (value,) = call.activations.values()
    wholes = Laid().of(value)
    for use, whole in wholes.items() if len(wholes) <= TERMS else ():
        channels = piece_of(whole).size
        taken = [piece for view in called(call, whole) if (piece := piece_of(view)).size < channels]
        use.taken |= dict.fromkeys(taken)
        for pieces in (taken, list(use.taken)):
            if not use.parts and 2 <= len(pieces) <= MAX_BLOCKS and _cover(pieces, channels):
                use.parts = tuple(sorted(pieces))


def _numbered(shape: Sequence[int], made: Channels) -> Tensor:
    strides, stride, first = [0] * len(shape), 1, len(shape) + made.output
    for axis in reversed(range(first, first + made.axes)):
        strides[axis] = stride
        stride *= shape[axis]
    return torch.empty_strided(tuple(shape), strides, device="meta")


def called(call: Call, layout: Tensor) -> list[Tensor]:
    """What a call gives of a stand-in, if those are views of it."""
    if len(call.inputs) != 1 or not callable(call.function):
        return []
    (position,) = call.inputs
    leaves = [layout if at == position else leaf for at, leaf in enumerate(call.leaves)]
    args, kwargs = unflattened(leaves, call.spec)
    try:
        given = tensors_in(call.function(*args, **kwargs))
    except RuntimeError:  # a view of the output that is none of the stand-in
        return []
    storage = layout.untyped_storage()._cdata
    return given if all(one.untyped_storage()._cdata == storage for one in given) else []


def piece_of(layout: Tensor) -> Piece:
    """The channels that a stand-in holds."""
    axes: list[tuple[int, int]] = []
    known = zip(layout.shape, layout.stride(), strict=True)
    for size, stride in sorted(((s, step) for s, step in known if step and s > 1), key=lambda axis: -axis[1]):
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    return Piece(int(layout.storage_offset()), tuple(axes))


def _cover(pieces: Sequence[Piece], channels: int) -> bool:
    """Whether they are all channels, each once."""
    if sum(piece.size for piece in pieces) != channels:
        return False
    held = torch.zeros(channels, dtype=torch.bool)
    for piece in pieces:
        held[piece.places()] = True
    return bool(held.all())
