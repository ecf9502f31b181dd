"""Where a multiplier of one use can be put from outside of the code: on what a module takes, or on what it gives.

A parameter may be used twice, and an attention holds no parameter: what multiplies one of these alone stands in front
of a function, or behind it. A module's input or output is such a place where nothing else hangs on it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.functions import HANDS_ON, SUMS, TIMES_OR_OVER, Does, does
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.splits import Parts, piece_of
from coordcheck.runs.words import Side

STEPS = 64  # calls between a module and what takes its output, of rotary positions and masks
KEEPS = HANDS_ON | Does.SPLITS | Does.NEGATES


class Place(NamedTuple):
    """A module, on whose input or output a multiplier acts on one use alone; of some channels, where there are any."""

    path: str
    side: Side
    piece: Piece | None = None
    channels: tuple[int, int] = (0, 0)
    """The last axis of the channels in the output, counted from the end, and how many axes they are."""
    every: int = 0
    """How many channels the output has."""


class Places:
    """Those of one forward pass.

    Args:
        users: the calls that take a tensor.
        entries: what modules took first, by path, call by call.
        exits: what modules gave, likewise.
        parametric: the modules that hold parameters, themselves or inside of them.
    """

    def __init__(
        self,
        users: Mapping[Value, Sequence[Call]],
        entries: Iterable[tuple[str, Value]],
        exits: Iterable[tuple[str, Value]],
        parametric: Container[str],
    ) -> None:
        self._users, self._parametric = users, parametric
        self._parts = Parts()  # of all: they are followed back to where they were made, once
        self._entries: dict[str, list[Value]] = {}
        self._exits: dict[str, list[Value]] = {}
        self._left: dict[Value, str] = {}
        for path, value in entries:
            self._entries.setdefault(path, []).append(value)
        for path, value in exits:
            self._exits.setdefault(path, []).append(value)
            self._left.setdefault(value, path)

    def of_input(self, use: UseCall) -> Place | None:
        """Where to multiply what a use takes: on the input of its module, or the output of the one before."""
        position, call = use.input_position, use.made_by
        if position is None:
            return None
        chain, path = Chain(call.inputs[position]), call.layer
        entered = self._entries.get(path, [])
        if len(entered) == 1 and chain.all_from(entered[0]) and self._leads_to(entered[0], chain, call, position, path):
            return Place(path, Side.INPUT)
        return self._given(chain, call, position) or self._given(chain, call, position, parametric=False)

    def of_output(self, use: UseCall) -> Place | None:
        """The module that gives what a use makes, with a bias perhaps, and nothing else."""
        value, made = use.made_by.outputs[0], use.channels
        while made is not None and len(self._exits.get(use.layer, ())) == 1:
            if self._left.get(value) == use.layer:
                return Place(use.layer, Side.OUTPUT, None, (1 - made.output - made.axes, made.axes), channels_of(use))
            takers = self._users.get(value, [])
            if len(takers) != 1 or len(takers[0].outputs) != 1 or not _hands_on(takers[0]):
                return None
            (value,) = takers[0].outputs
        return None

    def of_scores(self, product: AttentionCall) -> Place | None:
        """Where to multiply the queries of an attention, or else its keys, and nothing else."""
        call = product.made_by
        chains = [(Chain(call.inputs[position]), position) for position in product.given]
        found = [
            *(
                self._given(chain, call, position) or self._of_block(chain, call, position)
                for chain, position in chains
            ),
            *(self._given(chain, call, position, parametric=False) for chain, position in chains),
        ]
        return next((place for place in found if place is not None), None)

    def scored(self, attentions: Iterable[AttentionCall]) -> set[str]:
        """The modules whose outputs are one side of an attention, and nothing else."""
        places = map(self.of_scores, attentions)
        return {place.path for place in places if place is not None and place.piece is None}

    def _given(self, chain: Chain, call: Call, position: int, parametric: bool = True) -> Place | None:
        """The last module whose output becomes this argument of a call, and nothing else.

        One that has parameters, or any: what multiplies its output is told from a scale of its
        own, which a module without any should not have.
        """
        for value in chain.values:
            path = self._left.get(value)
            if path is None or len(self._exits[path]) != 1 or (parametric and path not in self._parametric):
                continue
            if chain.all_from(value) and self._leads_to(value, chain, call, position):
                return Place(path, Side.OUTPUT)
        return None

    def _of_block(self, chain: Chain, call: Call, position: int) -> Place | None:
        """Some channels of a module's output that become this argument, and nothing else."""
        for value in chain.values:
            for use, layout in self._parts.of(value).items():
                place, piece = self.of_output(use), piece_of(layout)
                if place is None or piece.size == channels_of(use) or not chain.all_from(value):
                    continue
                if self._leads_to(value, chain, call, position):
                    return place._replace(piece=piece)
        return None

    def _leads_to(self, value: Value, chain: Chain, call: Call, position: int, inside: str = "") -> bool:
        """Whether all that becomes of a tensor, inside of a module, is this argument of a call."""
        waiting, seen = [value], {value}
        while waiting:
            one = waiting.pop()
            for taker in self._users.get(one, ()):
                if inside and taker.layer != inside and not taker.layer.startswith(f"{inside}."):
                    continue
                if taker is call:
                    if any(given is one and at != position for at, given in taker.inputs.items()):
                        return False
                    continue
                used = [made for made in taker.outputs if self._users.get(made)]
                if any(made not in chain.values for made in used):
                    return False
                waiting += [made for made in used if made not in seen]
                seen.update(used)
        return True


class Chain:
    """The tensors that a tensor is in proportion to.

    Attributes:
        values: each with those that it was made of, the nearest first; none where it was made in another way.
    """

    def __init__(self, end: Value) -> None:
        self.end = end
        self.values: dict[Value, list[Value]] = {}
        waiting = [end]
        while waiting and len(self.values) < STEPS:
            value = waiting.pop(0)
            if value not in self.values:
                self.values[value] = _made_of(value)
                waiting += self.values[value]

    def all_from(self, value: Value) -> bool:
        """Whether the tensor is made of this one, and of nothing else."""
        waiting, seen = [self.end], {self.end}
        while waiting:
            one = waiting.pop()
            if one is value:
                continue
            before = self.values.get(one, [])
            if not before:
                return False
            waiting += [given for given in before if given not in seen]
            seen.update(before)
        return True


def _hands_on(call: Call) -> bool:
    """Whether the channels that a call takes are still those of one use: moved, with a bias, or multiplied."""
    if call.along is not None:
        return True
    data = [value for value in call.activations.values() if not _is_bias(value)]
    return len(data) == 1 and (call.view or call.factor is not None or does(call.name, Does.MOVES | Does.ADDS))


def _is_bias(value: Value) -> bool:
    """Whether a tensor is made of a parameter and of numbers alone, as a bias times some of them is."""
    call = value.call
    return call is not None and bool(call.uses) and all(given.call is None for given in call.activations.values())


def _made_of(value: Value) -> list[Value]:
    """What a tensor is in proportion to: it is a view or a multiple of it, or a sum of such; tables do not count."""
    call = value.call
    if call is None or call.uses:
        return []
    learned = [given for given in call.activations.values() if given.learns]
    moves = call.view or call.factor is not None or does(call.name, KEEPS)
    tabled = does(call.name, TIMES_OR_OVER) and len(learned) == 1
    return learned if moves or tabled or does(call.name, SUMS) else []


def channels_of(use: UseCall) -> int:
    """How many channels a use makes in all."""
    made, shape = use.channels, use.made_by.outputs[0].shape
    first = len(shape) + (0 if made is None else made.output)
    return 0 if made is None else math.prod(shape[first : first + made.axes])
