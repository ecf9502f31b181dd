"""Activations of a constant input: what attention takes that parameters alone made, such as the keys of latents.

No weight acts as a matrix in an attention. A product of parameters that ends there is a matrix times an input that is
the same for all data, and the parameter that is this input is a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from coordcheck.recording.graph.arguments import Flat
from coordcheck.recording.graph.attention import fused_arguments
from coordcheck.recording.graph.calls import Call, Value
from coordcheck.recording.graph.copies import kept_leaves
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.last_uses import LastUses
from coordcheck.recording.graph.making import uses_of

WITH_INPUT = Does.MULTIPLIES | Does.GAINED


def is_product(call: Call) -> bool:
    """Whether a call that takes no data has an input beside its parameters, such as the latents that a layer takes."""
    several = sum(value.size > 1 for value in call.inputs.values()) > 1
    return several and not call.activations and does(call.name, WITH_INPUT) and not does(call.name, Does.ADDED)


def _is_of_layer(value: Value) -> bool:
    """Whether it is the output of a layer in parts, as keys in heads are: what a product of two activations takes."""
    call, parts = value.call, len(value.shape) > 2 and not value.modulated
    while parts and call is not None and call.inputs and not does(call.name, Does.BIASED):
        call = next(iter(call.inputs.values())).call if call.view or does(call.name, Does.MOVES) else None
    return parts and call is not None and does(call.name, Does.BIASED)


def _are_tokens(value: Value, position: int) -> bool:
    """Whether it is what a module's own layer gives for a few trained rows, as queries are, times other rows' channels.

    A weight that is made in this way has as many rows as channels, or more.
    """
    call = value.call
    if position or call is None or not does(call.name, Does.BIASED) or len(value.shape) != 2:
        return False
    weight = list(call.operands.values())[-1:] if len(call.operands) > 1 else []
    own = [operand.parameter.rpartition(".")[0] for operand in weight]
    return own == [call.layer] and value.shape[0] < value.shape[1]


class Constants:
    """Those of one forward pass.

    Args:
        graph: its calls, among which those of tables are put.
        last: the last uses of parameters.
        parameters: the model's, by name.
        sampled: keep some rows of inputs, where they say as much as all.
    """

    def __init__(
        self, graph: list[Call], last: LastUses, parameters: Mapping[str, Tensor], *, sampled: bool = False
    ) -> None:
        self._graph, self._last, self._parameters, self._sampled = graph, last, parameters, sampled

    def see(self, call: Call, leaves: Sequence[Any]) -> None:
        """Take what an attention is given for data, and note the calls that made it of parameters.

        Args:
            call: the attention, or some other call.
            leaves: its arguments.
        """
        if does(call.name, Does.ATTENDS):
            given = fused_arguments(call.leaves, call.spec)
            taken = [given.get(name) for name in ("query", "key", "value")]
            self._activate(call, leaves, [position for position, value in call.inputs.items() if value in taken])
        elif call.made and call.activations and does(call.name, Does.MULTIPLIES) and not does(call.name, Does.BIASED):
            parts = [place for place, value in call.made.items() if _is_of_layer(value) or _are_tokens(value, place)]
            self._activate(call, leaves, parts)

    def _activate(self, call: Call, leaves: Sequence[Any], positions: Sequence[int]) -> None:
        """Likewise for the arguments of a call at some positions, which are data afterwards."""
        values = list(call.leaves)
        for position in positions:
            value = call.inputs[position]
            before = value.call
            if value.operand is not None:
                values[position] = self._table(value, leaves[position], call)
            elif value.parameters and before is not None and before.kept is not None:
                value.data, value.parameters = True, frozenset()
                product = is_product(before)
                self._activate(before, before.kept, list(before.inputs)[: 1 if product else None])
                if product:
                    self._use(before, before.kept)
        call.sort(values)

    def _table(self, value: Value, tensor: Tensor, taker: Call) -> Value:
        """The data that a parameter is as it stands, of a call of its own before the one that takes it."""
        call = Call("clone", [value], Flat(1, ()), function=Tensor.clone, layer=taker.layer)
        call.outputs.append(Value(value.shape, call, learns=value.learns))
        self._graph.insert(self._graph.index(taker) if taker in self._graph else len(self._graph), call)
        self._use(call, [tensor])
        return call.outputs[0]

    def _use(self, call: Call, leaves: Sequence[Any]) -> None:
        call.kept = kept_leaves(call.name, leaves, {*call.operands, *call.made}, sampled=self._sampled)
        call.uses = uses_of(call, self._parameters)
        for use in call.uses:
            self._last.file(use)
