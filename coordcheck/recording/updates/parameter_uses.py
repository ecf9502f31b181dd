"""What a diagnosis is about: every parameter in every use, block by block and slice by slice."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from coordcheck.recording.graph.calls import MAX_BLOCKS, UseCall
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.functions import Does, does, is_known
from coordcheck.recording.graph.last_uses import Part
from coordcheck.recording.graph.splits import factor_along
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.wrappers import submodule
from coordcheck.recording.layers.activations import ROOT
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.updates.made_weights import MadeWeight
from coordcheck.recording.updates.replays import (
    Block,
    FunctionReplay,
    Layer,
    ModuleReplay,
    NotReplayed,
    Slice,
    blocks,
    stacked,
)
from coordcheck.runs.names import distinct

NO_EXAMPLES = "no call takes it: the probe has no examples for it"


class Trace(Protocol):
    """What was seen of a later forward pass."""

    @property
    def uses(self) -> Mapping[tuple[str, str], UseCall]: ...

    @property
    def slices(self) -> Mapping[tuple[str, str], Mapping[tuple[int, tuple[int, ...]], UseCall]]: ...

    @property
    def attentions(self) -> Sequence[AttentionCall]: ...

    @property
    def products(self) -> Sequence[AttentionCall]: ...


class ParameterUse(NamedTuple):
    """What one row of the diagnosis is about: a parameter in one call, or a block of its rows."""

    name: str
    parameter: str
    call: UseCall | None
    """The first one that was seen; None where a module alone was seen to take it."""
    replay: FunctionReplay | ModuleReplay | None
    block: Block | Layer | Slice | None = None
    hidden: str = ""
    trained: bool = True

    @property
    def made(self) -> MadeWeight | None:
        """The weight that was computed from it, which is judged in its place."""
        return self.replay.made if isinstance(self.replay, FunctionReplay) else None

    def weight(self, initial: Mapping[str, Tensor]) -> Tensor:
        """What acts of it at t=0: its rows, or its share of the weight, for data of scale 1."""
        return self.rows(initial[self.parameter]) if self.made is None else self.made.own().share / self.made.met

    def rows(self, values: Tensor, gradient: bool = False) -> Tensor:
        """Those of its rows, each times what its channel is multiplied by, or over that where they are a gradient."""
        rows, along = values if self.block is None else self.block.rows(values), self._along
        if along is None or self.call is None or self.call.channels is None:
            return rows
        if self.block is None:
            rows = self.call.operand._replace(factor=1.0).of(values, {})
        return _times(rows, along, self.call.channels.own, gradient)

    def channels(self, output: Tensor, gradient: bool = False) -> Tensor:
        """Its channels of an output, likewise."""
        output, along = output if self.block is None else self.block.channels(output), self._along
        if along is None or self.call is None or self.call.channels is None:
            return output
        return _times(output, along, self.call.channels.output, gradient)

    @property
    def outward(self) -> float:
        """The scalar between its output and a product of two activations."""
        if self.call is None:
            return 1.0
        block, along = self.block, self.call.along
        if along is None or not isinstance(block, Block) or block.piece not in self.call.attended:
            return self.call.outward
        return self.call.outward * factor_along(along, block.piece)

    @property
    def _along(self) -> Tensor | None:
        """What each of its channels is multiplied by; None where that is the same for all of the parameter's."""
        every = None if self.call is None or self.made is not None else self.call.own_along
        if every is None or self.block is None:
            return every
        return every[self.block.piece.places()] if isinstance(self.block, Block) else None


def _times(values: Tensor, numbers: Tensor, axis: int, over: bool) -> Tensor:
    """Values times numbers along an axis, counted from the end, or over them."""
    sizes = [1] * values.dim()
    sizes[axis] = len(numbers)
    factors = numbers.to(values.device, values.dtype).view(sizes)
    return values / factors if over else values * factors


class Snapshot(NamedTuple):
    """A model before its first update, as it was traced."""

    model: nn.Module
    tracer: Tracer
    initial: Mapping[str, Tensor]
    """Every parameter's values."""
    trained: frozenset[str]
    with_gradient: frozenset[str]


def parameter_uses(taken: Snapshot) -> list[ParameterUse]:
    """Every parameter's uses, in the order in which they were first seen, and then those that were not seen."""
    found: list[ParameterUse] = []
    seen: set[str] = set()
    for (name, operation), call in taken.tracer.uses.items():
        replay = FunctionReplay(call, taken.initial)
        shown = name if name not in seen else distinct(f"{name}@{operation}", taken.initial)
        whole = ParameterUse(shown, name, call, replay, None, _hidden(call, replay), name in taken.trained)
        found += [whole, *(_blocks(whole, taken) if name not in seen else ())]
        seen.add(name)
    used, unseen = _around_matrices(taken.tracer), taken.trained - seen
    return found + [_unseen(name, taken, used) for name in taken.initial if name in unseen]


def _hidden(call: UseCall, replay: FunctionReplay) -> str:
    """Why a use cannot be judged; empty when it can."""
    if not replay.multiplier or 0 in call.operand.size:
        return "it has no effect: it is empty or times 0"
    if replay.made is not None and (why := replay.made.unknown):
        return f"the weight that is computed from it cannot be computed again ({why})"
    if call.unjudged:
        return call.unjudged
    if call.operand.size[1:] and not is_known(call.operation):
        return f"it acts in {call.operation}, of which it is not known over what it sums"
    return ""


def _blocks(whole: ParameterUse, taken: Snapshot) -> list[ParameterUse]:
    """Parts of a parameter: those that calls of their own take, or of a matrix that one call takes."""
    call = whole.call
    if call is None:
        return []
    if math.prod(call.operand.size) < taken.initial[whole.parameter].numel():
        return _slices(whole, call, taken)
    fused, layers = blocks(call.operand, call.parts, call.channels), stacked(call)
    beside = ", ..." if fused else ""  # matrix 0 of a stack, and the first block of all of them
    named: list[tuple[str, Block | Layer]] = [(str(number), block) for number, block in enumerate(fused)]
    named += [(f"{number}{beside}", layer) for number, layer in enumerate(layers)]
    return [
        whole._replace(name=distinct(f"{whole.name}[{place}]", taken.initial), block=block) for place, block in named
    ]


def _slices(whole: ParameterUse, first: UseCall, taken: Snapshot) -> list[ParameterUse]:
    """The slices of a parameter that calls of their own take; those of experts without examples are told as such."""
    calls = taken.tracer.slices.get((whole.parameter, first.operation), {})
    if not 2 <= len(calls) <= MAX_BLOCKS or any(call.operand.picked for call in calls.values()):
        return []
    parts = _alike(list(calls), taken.initial[whole.parameter].numel()) or sorted(calls)
    found = []
    for number, part in enumerate(parts if len(parts) <= MAX_BLOCKS else sorted(calls)):
        name, call = distinct(f"{whole.name}[{number}]", taken.initial), calls.get(part)
        if call is not None:
            replay = FunctionReplay(call, taken.initial)
            found.append(whole._replace(name=name, call=call, replay=replay, block=Slice(call.operand)))
        else:
            block = Slice(first.operand._replace(offset=part[0]))
            found.append(whole._replace(name=name, call=None, replay=None, block=block, hidden=NO_EXAMPLES))
    return found


def _alike(parts: Sequence[Part], size: int) -> list[Part]:
    """All parts of a parameter that lie one behind the other, where those that calls take are alike; else none."""
    (_, shape), every = parts[0], math.prod(parts[0][1])
    alike = all(of == shape and not offset % every for offset, of in parts) and not size % every
    return [(offset, shape) for offset in range(0, size, every)] if alike else []


def _unseen(name: str, taken: Snapshot, around: Container[str]) -> ParameterUse:
    """A parameter that no function was seen to take: through its module's call, or not visible.

    `around` are the modules that have a matrix in them.
    """
    if not taken.initial[name].numel():
        return ParameterUse(name, name, None, None, None, "it has no coordinates")
    if name not in taken.with_gradient:
        return ParameterUse(name, name, None, None, None, "no gradient reached it")
    path = name.rpartition(".")[0]
    while path and not _takes_input(path, taken.tracer):
        path = path.rpartition(".")[0]
    call = taken.tracer.calls.get(path or ROOT)
    if (path or ROOT) in around:
        # what the module makes of it depends on the other matrices as well
        return ParameterUse(name, name, None, None, None, f"{path or ROOT} uses it in a way that is not followed")
    if call is None or call.output is None:
        return ParameterUse(name, name, None, None, None, "it was used outside every module's call")
    module = submodule(taken.model, path)
    inside = name[len(path) + 1 :] if path else name
    initial = {n: taken.initial[f"{path}.{n}" if path else n] for n, _ in module.named_parameters()}
    try:
        return ParameterUse(name, name, None, ModuleReplay(path or ROOT, module, inside, call, initial))
    except NotReplayed as reason:
        return ParameterUse(name, name, None, None, None, str(reason))


def _takes_input(path: str, tracer: Tracer) -> bool:
    """Whether a module was called with a tensor; a parametrization is called with none."""
    call = tracer.calls.get(path)
    return call is not None and any(isinstance(leaf, Tensor) for _, leaf in leaves((call.args, call.kwargs)))


def _around_matrices(tracer: Tracer) -> set[str]:
    """The paths of the modules that a matrix is used in, or in a module inside of them."""
    found = set[str]()
    for use in tracer.uses.values():
        path = use.layer if use.matrix else ROOT
        while path != ROOT and path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    if any(use.matrix for use in tracer.uses.values()):
        found.add(ROOT)
    return found


class Later(NamedTuple):
    """The calls of a later forward pass, put together once for all uses."""

    uses: Mapping[tuple[str, str], UseCall]
    slices: Mapping[tuple[str, str], Mapping[tuple[int, tuple[int, ...]], UseCall]]

    @classmethod
    def of(cls, trace: Trace) -> Later:
        return cls(trace.uses, trace.slices)


def again(use: ParameterUse, later: Later) -> UseCall | None:
    """The call of a use in a later trace."""
    if use.call is None:
        return None
    key = use.parameter, use.call.operation
    if isinstance(use.block, Slice):
        return later.slices.get(key, {}).get((use.call.operand.offset, use.call.operand.size))
    return later.uses.get(key)


def comparable(use: ParameterUse, later: UseCall) -> bool:
    """Whether a later call saw the same examples: experts see other tokens once the routing changes."""
    first = use.call
    position = None if first is None else first.input_position
    if use.hidden or not use.trained or first is None or position is None:
        return use.trained and not use.hidden
    same_groups = not does(first.operation, Does.GROUPED) or all(
        torch.equal(before, after)
        for before, after in zip(first.leaves, later.leaves, strict=True)
        if isinstance(before, Tensor) and not before.is_floating_point()
    )
    return same_groups and bool(first.leaves[position].shape == later.leaves[position].shape)
