"""The parts that a diagnosis is about: every parameter in every use, block by block and slice by slice."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from coordcheck.recording.graph.calls import MAX_BLOCKS, UseCall
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.functions import is_known
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.wrappers import submodule
from coordcheck.recording.layers.activations import ROOT
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.updates.replays import (
    Block,
    FunctionReplay,
    ModuleReplay,
    NotReplayed,
    Slice,
    blocks,
    stacked,
)
from coordcheck.runs.names import distinct


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


class Part(NamedTuple):
    """What one row of the diagnosis is about: a parameter in one use, or a block of its rows."""

    name: str
    parameter: str
    use: UseCall | None
    replay: FunctionReplay | ModuleReplay | None
    block: Block | Slice | None = None
    hidden: str = ""
    trained: bool = True

    def rows(self, values: Tensor) -> Tensor:
        return values if self.block is None else self.block.rows(values)

    def channels(self, output: Tensor) -> Tensor:
        return output if self.block is None else self.block.channels(output)


class Snapshot(NamedTuple):
    """A model before its first update, as it was traced."""

    model: nn.Module
    tracer: Tracer
    initial: Mapping[str, Tensor]
    """Every parameter's values."""
    trained: frozenset[str]
    with_gradient: frozenset[str]


def parts_of(taken: Snapshot) -> list[Part]:
    """Every parameter's uses, in the order in which they were first seen, and then those that were not seen."""
    parts: list[Part] = []
    seen: set[str] = set()
    for (name, operation), use in taken.tracer.uses.items():
        replay = FunctionReplay(use, taken.initial)
        shown = name if name not in seen else distinct(f"{name}@{operation}", taken.initial)
        seen.add(name)
        whole = Part(shown, name, use, replay, None, _hidden(use, replay), name in taken.trained)
        fused = blocks(use.operand, use.pieces) if operation == "linear" else stacked(use)
        parts += [
            whole,
            *(
                whole._replace(name=distinct(f"{shown}[{i}]", taken.initial), block=block)
                for i, block in enumerate(fused)
            ),
        ]
        parts += _slices(whole, taken)
    used, unseen = _around_matrices(taken.tracer), taken.trained - seen
    return parts + [_unseen(name, taken, used) for name in taken.initial if name in unseen]


def _hidden(use: UseCall, replay: FunctionReplay) -> str:
    """Why a use cannot be judged; empty when it can."""
    if not replay.multiplier or 0 in use.operand.size:
        return "it has no effect: it is empty or times 0"
    if use.operand.size[1:] and not is_known(use.operation):
        return f"it acts in {use.operation}, of which it is not known over what it sums"
    return ""


def _slices(whole: Part, taken: Snapshot) -> list[Part]:
    """The parts of a parameter that calls of their own take."""
    if whole.use is None:
        return []
    uses = taken.tracer.slices.get((whole.parameter, whole.use.operation), {})
    if not 2 <= len(uses) <= MAX_BLOCKS or any(use.operand.then for use in uses.values()):
        return []
    return [
        whole._replace(
            name=distinct(f"{whole.name}[{number}]", taken.initial),
            use=use,
            replay=FunctionReplay(use, taken.initial),
            block=Slice(use.operand),
        )
        for number, (_, use) in enumerate(sorted(uses.items(), key=lambda item: item[0]))
    ]


def _unseen(name: str, taken: Snapshot, around: Container[str]) -> Part:
    """A parameter that no function was seen to take: through its module's call, or not visible.

    `around` are the modules that have a matrix in them.
    """
    if not taken.initial[name].numel():
        return Part(name, name, None, None, None, "it has no coordinates")
    if name not in taken.with_gradient:
        return Part(name, name, None, None, None, "no gradient reached it")
    path = name.rpartition(".")[0]
    while path and not _takes_input(path, taken.tracer):
        path = path.rpartition(".")[0]
    call = taken.tracer.calls.get(path or ROOT)
    if (path or ROOT) in around:
        # what the module makes of it depends on the other matrices as well
        return Part(name, name, None, None, None, f"{path or ROOT} uses it in a way that is not followed")
    if call is None or call.output is None:
        return Part(name, name, None, None, None, "it was used outside every module's call")
    module = submodule(taken.model, path)
    inside = name[len(path) + 1 :] if path else name
    initial = {n: taken.initial[f"{path}.{n}" if path else n] for n, _ in module.named_parameters()}
    try:
        return Part(name, name, None, ModuleReplay(path or ROOT, module, inside, call, initial))
    except NotReplayed as reason:
        return Part(name, name, None, None, None, str(reason))


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
    """The uses of a later forward pass, put together once for all parts."""

    uses: Mapping[tuple[str, str], UseCall]
    slices: Mapping[tuple[str, str], Mapping[tuple[int, tuple[int, ...]], UseCall]]

    @classmethod
    def of(cls, trace: Trace) -> Later:
        return cls(trace.uses, trace.slices)


def again(part: Part, later: Later) -> UseCall | None:
    """A part's use in a later trace."""
    if part.use is None:
        return None
    key = part.parameter, part.use.operation
    if isinstance(part.block, Slice):
        return later.slices.get(key, {}).get((part.use.operand.offset, part.use.operand.size))
    return later.uses.get(key)
