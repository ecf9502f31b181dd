"""One forward pass -> every torch function that was called, with what it took and gave; read once it is over.

Modules are not asked what they are. A parameter's use is the function call that takes it, or a view of it, beside an
activation; so functional layers, fused projections and `torch.nn` modules are seen alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.recording import scales
from coordcheck.recording.graph import constants, functions, generated, modulation
from coordcheck.recording.graph.arguments import flattened, is_measured, tensors_in
from coordcheck.recording.graph.attention import fused_arguments
from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.copies import by_rows, copied, fused_attention, kept_leaves, rows
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.homes import Homes
from coordcheck.recording.graph.last_uses import LastUses
from coordcheck.recording.graph.making import uses_of
from coordcheck.recording.graph.numbers import along, derived, factor_of, learned_factor, shares_storage, without_number
from coordcheck.recording.graph.places import Places
from coordcheck.recording.graph.reading import Reading
from coordcheck.recording.graph.roles import CallRole, contracts, role_of
from coordcheck.recording.graph.tensors import ByTensor
from coordcheck.recording.graph.watching import Watch
from coordcheck.recording.hooks.hooks import Hook
from coordcheck.recording.hooks.modes import unseen
from coordcheck.recording.layers.calls import version
from coordcheck.runs.words import Side


class Tracer(Watch):
    """Sees every torch function of a forward pass that runs inside it.

    Args:
        model: the model; it is not changed.
        keep_calls: also keep the inputs and outputs of every module call.
        sampled: of large tensors keep a subset of rows or examples, where a function acts on each of them by itself,
            and the calls of modules without parameters alone.
        gradients: also keep the gradients of outputs, where a backward pass follows.

    Attributes:
        graph: the calls.
        calls: the last call of each module.
        parameters: the model's, by name.
    """

    def __init__(
        self, model: nn.Module, *, keep_calls: bool = False, sampled: bool = False, gradients: bool = True
    ) -> None:
        super().__init__(model, keep_calls=keep_calls, sampled=sampled)
        self.graph, self._gradients = list[Call](), gradients
        self._homes = Homes(model, self.parameters)
        self._values: ByTensor[Value] = ByTensor()
        self._entries, self._exits = list[tuple[str, Value]](), list[tuple[str, Value]]()
        self._last = LastUses(self.parameters)
        self._modulated = modulation.Modulated(self._last)
        self._constants = constants.Constants(self.graph, self._last, self.parameters, sampled=sampled)

    # ---- what was seen, once the pass is over

    @cached_property
    def reading(self) -> Reading:
        """What is known of the pass."""
        with unseen(), torch.no_grad():
            reading = Reading(self.graph)
        self._modulated.let_go(self.graph)
        self.skipped += reading.skipped
        return reading

    @property
    def uses(self) -> dict[tuple[str, str], UseCall]:
        """The last call per (parameter, function), in the order of the first."""
        _ = self.reading
        return self._last.uses

    @property
    def slices(self) -> dict[tuple[str, str], dict[tuple[int, tuple[int, ...]], UseCall]]:
        """Of those that take a part of their parameter, the last call per part."""
        _ = self.reading
        return self._last.slices

    @property
    def attentions(self) -> list[AttentionCall]:
        """In the order of their softmax."""
        return self.reading.attentions

    @property
    def products(self) -> list[AttentionCall]:
        """All products of two activations, those of attentions that are not fused among them."""
        return self.reading.products

    @property
    def outside(self) -> dict[str, float]:
        """The scalar that multiplies a module's output outside of it, by path, where there is one."""
        found = self.reading.outside(self._exits)
        scored = [self.places.of_scores(product) for product in self.reading.attentions]
        taken = [self.places.of_input(use) for use in self.uses.values() if use.matrix and use.upstream != 1.0]
        places = [one for one in (*scored, *taken) if one is not None and one.side is Side.OUTPUT and not one.piece]
        paths = {place.path for place in places}
        for path, value in self._exits:
            mark = self.reading.of(value)
            if path in paths and not mark.held and mark.factor not in (0.0, 1.0):  # of a norm: it is no matrix' output
                found[path] = 1 / mark.factor
        return found

    @cached_property
    def places(self) -> Places:
        """Where multipliers can be put."""
        return Places(self.reading.users, self._entries, self._exits, self.parametric)

    @property
    def weights(self) -> set[str]:
        """The modules that gave what was computed from parameters alone, such as parametrizations."""
        return {name for name, value in self._exits if not value.data}

    # ---- while it runs

    def started(self) -> None:
        self._homes.find()

    def entered(self, name: str, args: Any) -> None:
        self._entries += self._named(name, args[0] if args else None)

    def left(self, name: str, output: Any) -> None:
        self._exits += self._named(name, output)

    def _named(self, path: str, given: Any) -> list[tuple[str, Value]]:
        value = self._values.get(given) if isinstance(given, Tensor) else None
        return [] if value is None else [(path, value)]

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, and note what it took and gave."""
        name = functions.name_of(func)
        try:
            with unseen():
                leaves, spec = flattened(args, kwargs)
                values = [self._value(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                call = Call(name, values, spec, function=func, layer=self.layer)
                self._constants.see(call, leaves)
                call.made |= (changed := {**modulation.weights(call), **generated.weights(call)})
                weights = {*call.operands, *call.made}
                sampled = self.sampled and not changed
                kept = kept_leaves(name, leaves, weights, sampled=sampled) if weights else leaves
                versions = [version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        except Exception as error:  # what cannot be looked at is not measured; it must run all the same
            self.skipped[f"{name} ({type(error).__name__})"] += 1
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        try:
            with unseen():
                call.in_place = versions != [version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
                self._see(call, leaves, kept, output)
        except Exception as error:  # likewise
            self.skipped[f"{name} ({type(error).__name__})"] += 1
        return output

    def _value(self, tensor: Tensor) -> Value:
        """A tensor that a call takes, as it was seen last."""
        found = self._values.get(tensor)
        if found is None:
            found = self._values[tensor] = Value(
                tensor.shape,
                operand=self._homes.operand(tensor),
                data=not self._homes.is_table(tensor),
                learns=tensor.requires_grad,
                floating=is_measured(tensor),
            )
        return found

    def _see(self, call: Call, leaves: Sequence[Any], kept: list[Any], output: Any) -> None:
        if call.name == "__setitem__":  # what is written to is what it gives
            output, call.name, call.function = leaves[0], "written", functions.written
        produced = tensors_in(output)
        if not produced:
            return
        role = role_of(call)
        _look(call, role, leaves, produced[0])
        operand, parameters = None, frozenset[str]()
        if role is CallRole.USES:
            call.kept, call.uses = kept, uses_of(call, self.parameters)
        elif role is CallRole.PICKS:
            operand = call.operands[0].through(call.function, kept, call.spec)._replace(picked=True)
        elif role is CallRole.DERIVES and self._homes.operand(produced[0]) is None and not does(call.name, Does.FILLS):
            alone = call.operands and not call.made and len(produced) == 1
            operand = derived(call, leaves, produced[0]) if alone else None
            if all(tensor.numel() for tensor in produced):  # not what an expert without tokens gives
                parameters = frozenset().union(*(_parameters_of(value) for value in call.inputs.values()))
                call.kept = kept
        elif role is CallRole.FOLLOWS:
            _keep_logits(call, leaves, produced[0], sampled=self.sampled, sides=self._keep_calls)
        names = self._modulated.see(call, leaves, produced[0].shape)
        for tensor in produced:
            call.outputs.append(
                Value(
                    tensor.shape,
                    call,
                    operand=self._homes.operand(tensor) if role is CallRole.DERIVES and operand is None else operand,
                    data=role in (CallRole.USES, CallRole.FOLLOWS),
                    learns=tensor.requires_grad,
                    floating=is_measured(tensor),
                    parameters=parameters,
                    modulated=names,
                )
            )
            self._values[tensor] = call.outputs[-1]
        self.graph.append(call)
        if call.uses:
            self._keep(call, leaves, produced[0])
        elif role is CallRole.DERIVES and constants.is_product(call):
            self._follow_back(call, produced[0])

    def _keep(self, call: Call, leaves: Sequence[Any], output: Tensor) -> None:
        """Keep a call's uses as the last ones, and what a replay needs of it."""
        if self.sampled and 0 in call.activations and _is_own(call, leaves, output):
            call.rows = rows(output, leaves[0])
        for use in call.uses:
            self._last.file(use)
        self._follow_back(call, output)

    def _follow_back(self, call: Call, output: Tensor) -> None:
        if self._gradients and output.requires_grad:  # not inside a function of its own backward, or a checkpoint
            output.register_hook(Hook(lambda gradient: self._keep_gradient(call, gradient), self._failed))

    def _keep_gradient(self, call: Call, gradient: Tensor) -> None:
        if call.uses and call.kept is not None:
            call.gradient = rows(gradient) if self.sampled else gradient.detach()


def _look(call: Call, role: CallRole, leaves: Sequence[Any], made: Tensor) -> None:
    """Note what is seen of values alone: the number that a call multiplies by, and whether it gives a view."""
    if role is CallRole.DERIVES:
        tensors = {position: leaves[position] for position in [*call.operands, *call.made][:1]}
        factor = factor_of(call.name, leaves, tensors) if len(call.operands) == 1 else None
    elif role is CallRole.USES:
        tensors, factor = {}, learned_factor(call, leaves)
    else:
        tensors = {position: leaves[position] for position in call.activations}
        factor = factor_of(call.name, leaves, without_number(call, tensors))
        call.along = along(call, tensors) if factor is None else None
    call.factor, call.view = factor, len(tensors) == 1 and shares_storage(next(iter(tensors.values())), made)


def _keep_logits(call: Call, leaves: Sequence[Any], output: Tensor, *, sampled: bool, sides: bool) -> None:
    """Keep the logits of what may be an attention, and how large both `sides` of it are."""
    if sides and (does(call.name, Does.ATTENDS) or contracts(call)):
        call.sides = {position: scales.rms_of(leaves[position].detach()) for position in call.activations}
    if does(call.name, Does.ATTENDS):
        call.scale, call.logits = fused_attention(fused_arguments(leaves, call.spec), sampled=sampled)
    elif contracts(call):
        call.logits = copied(output, sampled=sampled)  # what is masked in place later was a logit, too


def _parameters_of(value: Value) -> frozenset[str]:
    return value.parameters if value.operand is None else frozenset({value.operand.parameter})


def _is_own(call: Call, leaves: Sequence[Any], output: Tensor) -> bool:
    """Whether each row of an output is what one parameter makes of a row of the input, rounded no more than it is."""
    tensors = sum(isinstance(leaf, Tensor) for leaf in leaves)
    dtypes = {output.dtype, *(operand.dtype for operand in call.operands.values())}
    own = by_rows(call.name, (operand.size for operand in call.operands.values()))
    return own and len(call.operands) == 1 and tensors == 2 and dtypes in ({torch.float32}, {torch.float64})
