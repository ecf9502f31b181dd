"""A parameter's use, called again: on the input it saw at t=0, with its values from before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from coordcheck.recording import scales
from coordcheck.recording.graph.arguments import doubled, first_tensor, snapshot, unflattened
from coordcheck.recording.graph.calls import MAX_BLOCKS, UseCall
from coordcheck.recording.graph.copies import by_rows
from coordcheck.recording.graph.fans import Channels
from coordcheck.recording.graph.functions import Does, acts_as, does
from coordcheck.recording.graph.operands import Operand
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.watching import ModuleCall
from coordcheck.recording.updates.made_weights import MadeWeight

REPRODUCED = 1e-3  # relative difference up to which a module called again gives the same output


class Replay(Protocol):
    """One parameter's operation f on its initial input x_0."""

    layer: str
    operation: str

    @property
    def input_scale(self) -> float | Tensor: ...

    def output(self) -> Tensor: ...

    def own_update(self, now: Tensor, change: Tensor) -> Tensor: ...


class FunctionReplay:
    """A use that a tracer saw, with the parameters' initial values.

    Functions that are linear in the parameter are called with its change alone, which is exact however small the
    change; others in double precision, before and after.
    """

    def __init__(self, use: UseCall, initial: Mapping[str, Tensor]) -> None:
        self.layer, self.operation = use.layer, "curve" if use.operand.curve and not use.operand.made else use.operation
        self.multiplier = use.upstream * use.operand.factor * use.downstream
        self._use, self._initial = use, initial
        self.made = MadeWeight(use, initial) if use.operand.made else None
        self._scale = use.downstream
        vector = _role_in_norm(use)
        self._linear = use.alone  # in its input, too
        self._gain = vector == "gain"
        flat = len(use.operand.size) < 2 and not use.matrix
        self._bias = vector == "bias" or (does(use.operation, Does.BIASED) and flat)
        self._in_proportion = self._linear or self._gain or self._bias
        self._position = position = use.input_position
        self._input = None if position is None else use.leaves[position]
        self._rows: dict[int, Any] = {}  # inputs in place of those of the call
        self._sampled = self._linear and does(use.operation, Does.BY_ROW) and isinstance(self._input, Tensor)
        if self._sampled:
            self.act_on(use)
        self._direct = self._linear and use.operation == "linear" and (position, use.position) == (0, 1)

    @property
    def input_scale(self) -> float | Tensor:
        """RMS of x_0 before the scalars that multiply it; 1 for ids, and for vectors, which are not summed over it.

        Of several inputs that it multiplies with one another, the product.
        """
        if self._input is None or not self._use.matrix:
            return 1.0
        upstream = abs(self._use.upstream)
        beside = [scales.rms_of(self._use.leaves[position]) for position in self._use.multiplied]
        beside += [] if self.made is None else [self.made.met]
        return scales.rms_of(self._input) * math.prod(beside) / upstream if upstream else math.nan

    def act_on(self, call: UseCall) -> None:
        """Take the input of this call for x_0, or some rows of it, where they say as much as all."""
        if self._position is not None:
            given = call.leaves[self._position]
            self._input = scales.sample_rows(given) if self._sampled else given
            self._rows = {self._position: self._input}

    def output(self) -> Tensor:
        """The parameter's own part of h_0: f(p_0; x_0) - f(0; x_0)."""
        initial = self._initial[self._use.parameter]
        if self._in_proportion and not self._bias and self._use.output is not None:
            return self._scaled(self._use.output)
        if self._in_proportion:
            return self._proportional(initial)
        if self.made is not None:
            own = self.made.own()
            return (self._with(own.whole) - self._with(own.whole - own.share)) * self._scale
        return (self._in_double(initial) - self._in_double(torch.zeros_like(initial))) * self._scale

    def own_update(self, now: Tensor, change: Tensor) -> Tensor:
        """f(p_t; x_0) - f(p_0; x_0), given p_t and p_t - p_0, or what that made of a weight that is computed."""
        if self._in_proportion:
            return self._proportional(change)
        if self.made is not None:
            whole = self.made.own().whole
            return (self._with(whole + change, self._rows) - self._with(whole, self._rows)) * self._scale
        before = self._in_double(self._initial[self._use.parameter], self._rows)
        return (self._in_double(now, self._rows) - before) * self._scale

    def inherited(self, later: UseCall) -> Tensor:
        """f(p_0; x_t) - f(p_0; x_0), with x_t from a later trace."""
        use, position = self._use, self._position
        if position is None:
            return torch.zeros(1)
        x0, xt = use.leaves[position], later.leaves[position]
        before = self._initial[use.parameter]
        if self._bias and does(use.operation, Does.BIASED):  # what arrives beside it, arrives through the weight
            weights = {p: other.of(self._initial[other.parameter], self._initial) for p, other in use.others.items()}
            return use.call({**weights, position: (xt - x0).to(before.dtype), use.position: None}) * self._scale
        if self._linear:
            moved = scales.sample_rows(xt - x0) if self._sampled else xt - x0
            return self._scaled(self._alone(before, {position: moved}))
        if self._gain and by_rows(use.operation, (o.size for o in (use.operand, *use.others.values()))):
            normed = self._alone(before.double(), {position: torch.stack([x0, xt])})
            return normed[1] - normed[0]
        return (self._in_double(before, {position: xt}) - self._in_double(before, {position: x0})) * self._scale

    def _proportional(self, values: Tensor) -> Tensor:
        """f(values; x_0) - f(0; x_0) of a function that is linear in the parameter."""
        if self._bias:  # its own part of the output
            return self._use.operand.of(values, self._initial)
        return self._scaled(self._alone(values, self._rows))

    def _scaled(self, output: Tensor) -> Tensor:
        return output if self._scale == 1 else output * self._scale

    def _alone(self, values: Tensor, inputs: Mapping[int, Any]) -> Tensor:
        """The function of this parameter alone: without its bias."""
        use = self._use
        own, position = use.operand.of(values, self._initial), self._position
        if self._direct:  # which most are, and which is faster
            return F.linear(inputs.get(0, self._input).to(own.dtype), own)
        biases = dict.fromkeys(use.others, None)
        if position is not None:  # under autocast the function took another precision than the parameter's own
            inputs = {position: inputs.get(position, use.leaves[position]).to(own.dtype)}
        return use.call({**biases, **inputs, use.position: own})

    def _in_double(self, values: Tensor, inputs: Mapping[int, Any] | None = None) -> Tensor:
        return self._with(self._use.operand.of(values, self._initial), inputs)

    def _with(self, weight: Tensor, inputs: Mapping[int, Any] | None = None) -> Tensor:
        """The function with another tensor in the place of the parameter, in double precision."""
        use = self._use
        leaves: dict[int, Any] = dict(enumerate(use.leaves)) | dict(inputs or {})
        for position, operand in use.others.items():
            if operand.parameter in self._initial:
                leaves[position] = operand.of(self._initial[operand.parameter], self._initial)
        leaves[use.position] = weight
        with torch.random.fork_rng(_devices(weight)):  # dropout inside draws the same each time, and training other
            return use.call({p: doubled(leaf) for p, leaf in leaves.items()})


def _role_in_norm(use: UseCall) -> str:
    """Whether a vector is the "gain" or the "bias" of a normalisation, whose part can be told by itself."""
    weight = use.leaves[use.position]
    known = {use.position, use.input_position, *use.others}
    beside = [leaf for p, leaf in enumerate(use.leaves) if p not in known and isinstance(leaf, Tensor)]
    twice = sum(leaf is weight for leaf in use.leaves) > 1
    if twice or beside or use.operand.curve or use.operand.dtype not in (torch.float32, torch.float64):
        return ""
    return acts_as(use.operation, weight, *unflattened(use.leaves, use.spec))


def _devices(tensor: Tensor) -> list[torch.device]:
    """The devices whose random numbers a function of it may draw, beside the processor's."""
    return [tensor.device] if tensor.device.type == "cuda" else []


class ModuleReplay:
    """A module's call, for a parameter that no function was seen to take: reparametrised, or hidden in other code.

    Raises:
        NotReplayed: the module gives another output when it is called again on the same input.
    """

    operation = "module"
    multiplier = 1.0

    def __init__(self, layer: str, module: nn.Module, name: str, call: ModuleCall, initial: Mapping[str, Tensor]):
        self.layer = layer
        self._module, self._name, self._call, self._initial = module, name, call, initial
        try:
            again, before = self._called({}), first_tensor(call.output)
            if not before.numel():
                raise NotReplayed(f"{layer} saw no example on the probe")
        except NotReplayed:
            raise
        except Exception as error:  # the user's forward, called without its context
            raise NotReplayed(f"{layer} cannot be called by itself ({type(error).__name__})") from error
        close = again.shape == before.shape and _rms(again - before.detach()) <= REPRODUCED * max(_rms(before), 1e-30)
        if not close:
            raise NotReplayed(f"{layer} gives another output when it is called again on the same input")

    @property
    def input_scale(self) -> float:
        try:
            return _rms(first_tensor((self._call.args, self._call.kwargs)))
        except (ValueError, scales.NotMeasurable):  # ids, or nothing
            return 1.0

    def output(self) -> Tensor:
        return self._called({})

    def own_update(self, now: Tensor, change: Tensor) -> Tensor:
        return self._called({self._name: now}) - self._called({})

    def _called(self, changed: Mapping[str, Tensor]) -> Tensor:
        """The module's output on x_0 with its initial parameters, some of them changed; nothing of it is modified."""
        call = self._call
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.set_rng_state(call.random_state)
            buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
            state = {**buffers, **self._initial, **changed}
            output = functional_call(self._module, state, snapshot(call.args), snapshot(call.kwargs))
        return first_tensor(output)


class NotReplayed(Exception):
    """Internal: a parameter's use that cannot be called again; the text says why."""


class Block(NamedTuple):
    """Some of the channels that a matrix makes, and its rows that make them."""

    piece: Piece
    made: Channels
    operand: Operand
    """The view of the parameter that is the matrix."""
    stacked: bool = False

    def rows(self, values: Tensor) -> Tensor:
        return self.piece.of(self.operand._replace(factor=1.0).of(values, {}), self.made.own, self.made.axes)

    def channels(self, output: Tensor) -> Tensor:
        return self.piece.of(output, self.made.output, self.made.axes)


class Layer(NamedTuple):
    """One of several stacked matrices."""

    number: int
    stacked: bool = True

    def rows(self, values: Tensor) -> Tensor:
        return values.narrow(0, self.number, 1)

    def channels(self, output: Tensor) -> Tensor:
        return output


class Slice(NamedTuple):
    """The part of a parameter that one call takes, as of one expert in a loop over a stack."""

    operand: Operand
    stacked: bool = False

    def rows(self, values: Tensor) -> Tensor:
        return self.operand._replace(factor=1.0, then=None).of(values, {})

    def channels(self, output: Tensor) -> Tensor:
        return output


def blocks(operand: Operand, parts: Sequence[Piece], made: Channels | None) -> list[Block]:
    """The blocks of rows of a fused projection, such as the queries, keys and values of one matrix."""
    whole = len(operand.size) >= 2 and not operand.offset and operand.then is None
    if made is None or not parts or not whole:
        return []
    first = len(operand.size) + made.own
    if sum(part.size for part in parts) != math.prod(operand.size[first : first + made.axes]):
        return []
    return [Block(part, made, operand) for part in parts]


def stacked(use: UseCall) -> list[Layer]:
    """The matrices of a stack, such as those of the experts."""
    size = use.operand.size
    whole = use.fans is not None and not use.operand.offset and use.operand.then is None
    if not whole or not does(use.operation, Does.STACKED) or len(size) != 3 or not 2 <= size[0] <= MAX_BLOCKS:
        return []
    if use.fans == (math.prod(size[1:]), size[0]) or not use.operand.stride[0]:
        return []  # one matrix, which sums over two axes, or one for all examples
    return [Layer(index) for index in range(size[0])]


def _rms(tensor: Tensor) -> float:
    return float(scales.rms_of(tensor))
