"""One forward pass -> how it used its parameters: every torch function seen, with what it took and gave.

Modules are not asked what they are. A parameter's use is the function call that takes it, or a view of it, beside an
activation; so functional layers, fused projections and `torch.nn` modules are seen alike. Scalars that multiply the
input, the output or the parameter right there belong to the use: it does not matter whether a multiplier stands inside
a module or in the code around it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from coordcheck.recording.graph import operations as ops
from coordcheck.recording.graph.arguments import flattened, tensors_in, unflattened
from coordcheck.recording.graph.attention import fused_arguments
from coordcheck.recording.graph.fans import fans_of, is_linear
from coordcheck.recording.graph.keeping import copied, fused_attention, kept_leaves, rows
from coordcheck.recording.graph.marks import Marks
from coordcheck.recording.graph.nodes import AttentionCall, Node, joined
from coordcheck.recording.graph.uses import COMPUTED, MAX_BLOCKS, Mark, ModuleCall, Operand, UseCall, summed
from coordcheck.recording.hooks.hooks import Hook
from coordcheck.recording.hooks.modes import Mode, others_see, transforming, unseen
from coordcheck.recording.layers.activations import ROOT, in_backward
from coordcheck.recording.layers.calls import version


class _Seen(NamedTuple):
    """One function call."""

    name: str
    function: Any
    leaves: list[Any]
    kept: list[Any]
    """The same with copies of all activations, where it takes a parameter."""
    spec: Any
    operands: dict[int, Operand]
    in_place: bool


class Tracer:
    """Sees every torch function of a forward pass that runs inside it.

    Args:
        model: the model; it is not changed.
        keep_calls: also keep the inputs and outputs of every module call.
        sampled: of large tensors keep a subset of rows or examples, where a function acts on each of them by itself,
            and the calls of modules without parameters alone.
        gradients: also keep the gradients of outputs, where a backward pass follows.

    Attributes:
        uses: the last call per (parameter, function), in the order of the first.
        slices: of those that take a part of their parameter, the last call per part.
        attentions: in the order of their softmax.
        products: all products of two activations, those of attentions that are not fused among them.
        calls: the last call of each module.
        parameters: the model's, by name.
    """

    def __init__(
        self, model: nn.Module, *, keep_calls: bool = False, sampled: bool = False, gradients: bool = True
    ) -> None:
        self.uses: dict[tuple[str, str], UseCall] = {}
        self.slices: dict[tuple[str, str], dict[tuple[int, tuple[int, ...]], UseCall]] = {}
        self.attentions: list[AttentionCall] = []
        self._attended: set[AttentionCall] = set()
        self.products: list[AttentionCall] = []
        self.calls: dict[str, ModuleCall] = {}
        self.skipped: Counter[str] = Counter()
        self.sampled = sampled
        self.parameters = dict(model.named_parameters())
        self._model, self._keep_calls, self._gradients = model, keep_calls, gradients
        self._stack: list[str] = []
        self._marks: Marks[Mark | Operand | str] = Marks()
        self._storages: dict[int, list[tuple[str, Tensor]]] = {}
        self._sizes: dict[str, int] = {}
        self._parametric = {ROOT, *_prefixes(self.parameters)}
        self._buffers: set[int] = set()
        self._exits: dict[str, Mark] = {}
        self._hooks = ExitStack()
        self._mode = Mode(self.run)
        self._thread = threading.get_ident()

    def __enter__(self) -> Tracer:
        self._begin(self._model.named_modules())
        self._watch()
        return self

    def _begin(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        for name, parameter in self.parameters.items():
            if _made(parameter):
                self._storages.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))
                self._sizes[name] = parameter.numel()
        self._buffers = {
            buffer.untyped_storage().data_ptr()
            for module in self._model.modules()
            for buffer in module._buffers.values()
            if buffer is not None and buffer.layout is torch.strided and buffer.numel()
        }
        with ExitStack() as hooks:
            leave = Hook(self._leave, self._failed)
            for name, module in modules:
                enter = Hook(partial(self._enter, name or ROOT), self._failed)
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            self._hooks = hooks.pop_all()

    def __exit__(self, *exception: Any) -> None:
        self._hooks.close()

    def begin(self, args: Any, kwargs: Any) -> None:
        """Enter from inside a call of the model, which has begun; it ends with the call, also by an exception."""
        # a hook that is always called is not there outside of such a call: a model with one is not compiled
        ended = Hook(lambda model, args, output: self.end(output), self._failed)
        self._begin((name, module) for name, module in self._model.named_modules() if name)
        self._watch()
        self._hooks.callback(self._model.register_forward_hook(ended, always_call=True).remove)
        self._enter(ROOT, self._model, args, kwargs)

    def _watch(self) -> None:
        self._mode.put_on()
        self._hooks.callback(self._mode.take_off)

    @property
    def elsewhere(self) -> bool:
        """Whether another thread is inside the call."""
        return bool(self._stack) and threading.get_ident() != self._thread

    def end(self, output: Any = None) -> None:
        """Leave that call; once is enough. Another thread's call of the model is none of this one's."""
        if threading.get_ident() != self._thread:
            return
        try:
            if self._stack:
                self._leave(self._model, (), {}, output)
        finally:
            self._hooks.close()

    def _failed(self, error: Exception) -> None:
        self.skipped[f"a call ({type(error).__name__})"] += 1

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if in_backward() or threading.get_ident() != self._thread:
            return
        self._stack.append(name)
        if self._keep_calls and not (self.sampled and (name in self._parametric or transforming())):
            with unseen(), suppress(Exception):  # of arguments that cannot be copied
                args, kwargs = (copied(value, sampled=self.sampled) for value in (args, kwargs))
                self.calls[name] = ModuleCall(args, kwargs, None, torch.get_rng_state())

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if in_backward() or not self._stack or threading.get_ident() != self._thread:
            return
        name = self._stack.pop()
        mark = self._marks.get(output) if isinstance(output, Tensor) else None
        if isinstance(mark, Mark) and mark.held:
            self._exits[name] = mark
        if name in self.calls:
            with unseen(), suppress(Exception):
                self.calls[name] = self.calls[name]._replace(output=copied(output, sampled=self.sampled))

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, and note what it took and gave."""
        name = ops.name_of(func)
        if name == "__set__" or ops.tells(func) or in_backward():
            return func(*args, **kwargs)
        if ops.inside(func) and not others_see(args, kwargs):  # one of torch's own: its steps come here
            with self._mode:
                return ops.steps_of(func)(*args, **kwargs)
        try:
            with unseen():
                leaves, spec = flattened(args, kwargs)
                operands = self._operands(leaves)
                kept = kept_leaves(name, leaves, operands, sampled=self.sampled) if operands else leaves
                versions = [version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        except Exception as error:  # what cannot be looked at is not measured; it must run all the same
            self.skipped[f"{name} ({type(error).__name__})"] += 1
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        try:
            with unseen():
                in_place = versions != [version(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
                self._see(_Seen(name, func, leaves, kept, spec, operands, in_place), output)
        except Exception as error:  # likewise
            self.skipped[f"{name} ({type(error).__name__})"] += 1
        return output

    @property
    def outside(self) -> dict[str, float]:
        """The scalar that multiplies a module's output outside of it, by path, where there is one."""
        found = {}
        for path, mark in self._exits.items():
            factors = {use.downstream / factor for use, factor in mark.held if factor}
            if len(factors) == 1:
                found[path] = factors.pop()
        return {path: factor for path, factor in found.items() if factor not in (0.0, 1.0)}

    @property
    def _layer(self) -> str:
        return self._stack[-1] if self._stack else ROOT

    def _operands(self, leaves: Sequence[Any]) -> dict[int, Operand]:
        """The arguments that are parameters, views of them or scalar multiples of them, by position."""
        found = {}
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                operand = self._operand(leaf)
                if operand is not None:
                    found[position] = operand
        return found

    def _operand(self, tensor: Tensor) -> Operand | None:
        mark = self._marks.get(tensor)
        if isinstance(mark, Operand):
            return mark
        if tensor.layout is not torch.strided or not tensor.is_floating_point():
            return None
        for name, parameter in self._storages.get(tensor.untyped_storage().data_ptr(), ()):
            offset = tensor.storage_offset() - parameter.storage_offset()
            if 0 <= offset < max(parameter.numel(), 1) and tensor.dtype == parameter.dtype:
                return Operand(name, tuple(tensor.shape), tuple(tensor.stride()), int(offset), 1.0, tensor.dtype)
        return None

    def _see(self, seen: _Seen, output: Any) -> None:
        if seen.name == "__setitem__":  # what is written to is what it gives
            output, seen = seen.leaves[0], seen._replace(name="written", function=ops.written)
        produced = tensors_in(output)
        if not produced:
            return
        name, operands = seen.name, seen.operands
        tensors = {p: leaf for p, leaf in enumerate(seen.leaves) if isinstance(leaf, Tensor) and leaf.numel() > 1}
        activations = {p: t for p, t in tensors.items() if p not in operands and self._is_activation(t)}
        picks = name in ops.PICKS and min(operands, default=1) == 0 and seen.leaves[0].dim() > 2
        if picks and activations:
            self._put(produced, operands[0].made(seen.function, seen.kept, seen.spec))
        elif operands and (not activations or (name in ops.ALIASES and min(operands) == 0)):
            self._derive(seen, produced)
        elif operands:
            self._use(seen, activations, produced)
        elif not activations and tensors:  # further computed from parameters and tables alone
            self._put(produced, COMPUTED)
        else:
            self._follow(seen, activations, produced, contracted=len(tensors) == len(activations))

    def _is_activation(self, tensor: Tensor) -> bool:
        """Neither computed from parameters alone, nor one of the model's tables."""
        if self._marks.get(tensor) == COMPUTED:
            return False
        if not tensor.is_floating_point() and tensor.dtype is not torch.bool:  # ids pick, wherever they are kept
            return True
        return tensor.layout is not torch.strided or tensor.untyped_storage().data_ptr() not in self._buffers

    def _follow(
        self, seen: _Seen, activations: Mapping[int, Tensor], produced: Sequence[Tensor], contracted: bool
    ) -> None:
        """A function of activations: hand on what is known of them."""
        name = seen.name
        marks = {p: self._mark(tensor) for p, tensor in activations.items()}
        flow = joined(mark.flow for mark in marks.values())
        tensors = _without_uniform(name, activations, marks)
        factor = ops.scalar(name, seen.leaves, tensors)
        first = next(iter(marks.values()), Mark())
        product = next((mark for mark in marks.values() if mark.product), None)
        if factor is not None:
            self._put(produced, next((m for m in marks.values() if m != Mark()), first).times(factor))
        elif name in ops.ALIASES or (not seen.in_place and ops.shares_storage(activations, produced)):
            self._split(seen, first, activations, produced)
            self._put(produced, first)
        elif name in ops.SOFTMAXES and product is not None:
            self._attend(product)
            self._put(produced, Mark(flow=flow))
        elif name == ops.ATTENTION:
            self._put(produced, Mark(flow=self._fused_attention(seen)))
        elif name in ops.PRODUCTS and len(activations) >= 2 and contracted:
            self._put(produced, self._product(seen, activations, marks, flow, produced[0]))
        elif name in ops.SCORED and product is not None:
            self._put(produced, product._replace(flow=flow))
        elif name in ops.SUMS | ops.JOINS or ops.averages(name, activations, produced):
            self._put(produced, summed(list(marks.values()))._replace(flow=flow))
        elif (table := _tabled(name, marks, activations)) is not None:
            self._put(produced, table._replace(flow=flow))
        else:
            self._take_up(marks.values())
            self._put(produced, Mark(flow=flow))

    def _mark(self, tensor: Tensor) -> Mark:
        mark = self._marks.get(tensor)
        return mark if isinstance(mark, Mark) else Mark()

    def _put(self, produced: Iterable[Tensor], mark: Mark | Operand | str) -> None:
        for tensor in produced:
            self._marks[tensor] = mark

    def _take_up(self, marks: Iterable[Mark], contracted: bool = False) -> None:
        for mark in marks:
            for use, factor in mark.held:
                use.taken_up.add((factor, contracted))

    def _derive(self, seen: _Seen, produced: Sequence[Tensor]) -> None:
        """Follow a parameter through copies, views, products with a scalar and functions of every coordinate.

        Views of the parameter itself are known by their storage.
        """
        (position, operand), *more = seen.operands.items()
        made, tensor = produced[0], seen.leaves[position]
        marked = isinstance(self._marks.get(made), Operand)
        if self._operand(made) is not None and not (marked and seen.in_place):
            return
        factor = None if more else ops.scalar(seen.name, seen.leaves, {position: tensor})
        view = ops.shares_storage({0: tensor}, [made])
        alone = not more and not seen.in_place and not _values_beside(seen, position)
        if factor is not None and not operand.curve:
            self._put([made], operand._replace(factor=operand.factor * factor))
        elif alone and (seen.name in ops.CURVES or (operand.then and (view or seen.name in ops.ALIASES or factor))):
            curve = seen.name if seen.name in ops.CURVES else ""
            self._put([made], operand.made(seen.function, seen.leaves, seen.spec, position, curve))
        elif operand.then is None and seen.name in ops.ALIASES and tuple(made.shape) == operand.size:
            self._put([made], operand)
        elif operand.then is None and not more and tensor.stride() == operand.stride and view:
            offset = operand.offset + int(made.storage_offset() - tensor.storage_offset())
            self._put([made], operand._replace(size=tuple(made.shape), stride=tuple(made.stride()), offset=offset))
        else:
            self._put(produced, COMPUTED)

    def _use(self, seen: _Seen, activations: Mapping[int, Tensor], produced: Sequence[Tensor]) -> None:
        """A function of activations and parameters: note how it uses each of these."""
        uses = self._uses_of(seen, produced[0])
        if not uses:
            self._follow(seen, activations, produced, contracted=False)
            return
        if self.sampled and 0 in activations and _is_own(seen, produced[0]):
            uses[0].output = rows(produced[0], activations[0])
        marks = {p: self._mark(tensor) for p, tensor in activations.items()}
        for use in uses:
            if use.input_position is not None:
                use.source = marks.get(use.input_position)
            self._file(use)
        self._put(produced, self._mark_of_use(seen, uses, marks))
        self._follow_gradient(uses, produced[0])

    def _uses_of(self, seen: _Seen, output: Tensor) -> list[UseCall]:
        args, kwargs = unflattened(seen.kept, seen.spec)
        uses = []
        for position, operand in seen.operands.items():
            use = UseCall(operand, position, seen.function, self._layer, seen.kept, seen.spec)
            use.fans = fans_of(seen.name, seen.kept[position], position, seen.kept, args, kwargs)
            if use.matrix and operand.curve:  # how large a function of a matrix is depends on more than its scale
                continue
            use.others = {p: other for p, other in seen.operands.items() if p != position}
            use.rank = output.dim()
            uses.append(use)
        return uses

    def _file(self, use: UseCall) -> None:
        """Keep a use as the last one of its parameter and function, and of the part of the parameter that it takes."""
        key = use.parameter, use.operation
        earlier = self.uses.get(key)
        if earlier is not None:
            use.feeds |= earlier.feeds
        self.uses[key] = use
        if use.matrix and math.prod(size := use.operand.size) < self._sizes[use.parameter]:
            self.slices.setdefault(key, {})[use.operand.offset, size] = use

    def _mark_of_use(self, seen: _Seen, uses: Sequence[UseCall], marks: Mapping[int, Mark]) -> Mark:
        """What is known of the output of a function that uses parameters."""
        product = next((mark for mark in marks.values() if mark.product), None)
        flow = joined(mark.flow for mark in marks.values())
        matrices = [use for use in uses if use.matrix]
        for node in flow:
            node.feeds.update(matrices)
        learned = [leaf for p, leaf in enumerate(seen.leaves) if p in seen.operands and leaf.numel() == 1]
        if learned and len(seen.operands) == 1 and len(marks) == 1 and seen.name in ops.SCALAR_PRODUCTS:
            (mark,) = marks.values()  # a learned scalar acts with its initial value
            return mark.times(float(learned[0].detach()))
        if product is not None and seen.name in ops.SCORED | ops.SCALAR_PRODUCTS:  # a bias or temperature of logits
            return product._replace(flow=flow)
        if seen.name in ops.SUMS | ops.JOINS:  # a bias: the sum is still what it was
            return summed(list(marks.values()))._replace(flow=flow)
        self._take_up(marks.values())
        held = tuple((use, 1.0) for use in matrices[:1] if is_linear(use.operation))
        return Mark(held=held, flow=frozenset(matrices) or flow)

    def _follow_gradient(self, uses: Sequence[UseCall], output: Tensor) -> None:
        if not (self._gradients and output.requires_grad):  # inside a function of its own backward, or a checkpoint
            return

        def keep(gradient: Tensor) -> None:
            kept = rows(gradient) if self.sampled else gradient.detach()
            for use in uses:
                use.gradient = kept

        output.register_hook(Hook(keep, self._failed))

    def _split(self, seen: _Seen, mark: Mark, activations: Mapping[int, Tensor], produced: Sequence[Tensor]) -> None:
        """Note into which blocks of channels a matrix's output is split."""
        use = mark.held[0][0] if len(mark.held) == 1 else None
        if use is None or use.fans is None or use.pieces or seen.name not in ops.SPLITS:
            return
        if seen.name == "__getitem__" and not (len(seen.leaves) == 2 and isinstance(seen.leaves[1], int)):
            return
        whole, channels = next(iter(activations.values())), use.fans.fan_out
        lasts = tuple(int(piece.shape[-1]) for piece in produced)
        if len(produced) > 1 and sum(lasts) == channels == whole.shape[-1]:
            use.pieces = lasts
        else:  # (..., 3, ...) taken apart along an axis of its own
            parts = len(produced) if len(produced) > 1 else int(whole.shape[0])
            removed = whole.dim() - produced[0].dim() == 1 and whole.dim() > use.rank  # an axis made of channels
            if removed and 2 <= parts <= MAX_BLOCKS and channels % parts == 0:
                use.pieces = (channels // parts,) * parts

    def _attend(self, mark: Mark) -> None:
        attention = mark.product
        if attention is not None and attention not in self._attended:
            self._attended.add(attention)
            attention.scale *= mark.factor
            attention.after = mark.factor
            attention.logits = None if attention.logits is None else attention.logits * mark.factor
            self.attentions.append(attention)

    def _product(
        self,
        seen: _Seen,
        activations: Mapping[int, Tensor],
        marks: Mapping[int, Mark],
        flow: frozenset[Node],
        output: Tensor,
    ) -> Mark:
        """A product of two activations: attention logits, if a softmax follows."""
        self._take_up(marks.values(), contracted=True)
        left_at, (right_at, right) = list(activations)[-2], list(activations.items())[-1]
        args, kwargs = unflattened(seen.leaves, seen.spec)
        fans = fans_of(seen.name, right, right_at, seen.leaves, args, kwargs)
        attention = AttentionCall(self._layer, seen.name)
        attention.head_size, attention.places = max(1, fans.fan_in if fans else 1), (left_at, right_at)
        alpha = kwargs.get("alpha", 1) if seen.name in ops.ADDED else 1
        attention.scale = marks[left_at].factor * marks[right_at].factor * float(alpha)
        attention.logits = copied(output, sampled=self.sampled)  # what is masked in place later was a logit, too
        for node in flow:
            node.feeds.add(attention)
        self.products.append(attention)
        return Mark(product=attention, flow=flow | {attention})

    def _fused_attention(self, seen: _Seen) -> frozenset[Node]:
        """Rebuild the logits of a fused attention; what its output depends on."""
        given = fused_arguments(seen.leaves, seen.spec)
        attention = AttentionCall(self._layer, ops.ATTENTION)
        before = [self._mark(given["query"]), self._mark(given["key"])]
        self._take_up(before, contracted=True)
        values = self._mark(given["value"])
        self._take_up([values])
        attention.head_size = int(given["query"].shape[-1])
        scale, attention.logits = fused_attention(given, sampled=self.sampled)
        attention.scale = scale * before[0].factor * before[1].factor
        for node in before[0].flow | before[1].flow:
            node.feeds.add(attention)
        self.attentions.append(attention)
        return values.flow | {attention}


def _without_uniform(name: str, tensors: Mapping[int, Tensor], marks: Mapping[int, Mark]) -> Mapping[int, Tensor]:
    """The tensors of a product without one that holds a single number in all places."""
    if len(tensors) != 2 or name not in ops.SCALAR_PRODUCTS | ops.SCALAR_QUOTIENTS:
        return tensors
    fixed = [p for p, t in tensors.items() if marks[p] == Mark() and not t.requires_grad]
    return {p: t for p, t in tensors.items() if p not in fixed[:1] or not bool((t == t.flatten()[0]).all())}


def _tabled(name: str, marks: Mapping[int, Mark], activations: Mapping[int, Tensor]) -> Mark | None:
    """What a product with a table hands on: rotary positions keep a scale."""
    known = [mark for mark in marks.values() if mark.held]
    tables = [activations[p] for p, mark in marks.items() if not mark.held]
    if name not in ops.SCALAR_PRODUCTS or len(known) != 1 or any(t.requires_grad for t in tables):
        return None
    return known[0]


def _is_own(seen: _Seen, output: Tensor) -> bool:
    """Whether each row of an output is what one parameter makes of a row of the input, rounded no more than it is."""
    tensors = sum(isinstance(leaf, Tensor) for leaf in seen.leaves)
    dtypes = {output.dtype, *(operand.dtype for operand in seen.operands.values())}
    by_rows = ops.by_rows(seen.name, (operand.size for operand in seen.operands.values()))
    return by_rows and len(seen.operands) == 1 and tensors == 2 and dtypes in ({torch.float32}, {torch.float64})


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """The modules that hold some of these parameters, or whose submodules do."""
    for name in names:
        while name := name.rpartition(".")[0]:
            yield name


def _values_beside(seen: _Seen, position: int) -> bool:
    """Whether a call takes another floating tensor; places to pick from are none."""
    others = (leaf for p, leaf in enumerate(seen.leaves) if p != position)
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in others)


def _made(parameter: Tensor) -> bool:
    return not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.layout is torch.strided
