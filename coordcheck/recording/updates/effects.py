"""What each parameter of one model did: the scales of a diagnosis, taken from traces, gradients and updates.

Everything here is local to one parameter: its scale, its gradient, its update, and that update's effect on the input
that its operation saw at t=0. Faults upstream or downstream do not change these, so one fault shows in one place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.recording import scales
from coordcheck.recording.graph.arguments import first_tensor
from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.flow import AttentionCall, Node
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.wrappers import submodule
from coordcheck.recording.layers.activations import ROOT
from coordcheck.recording.updates import changes
from coordcheck.recording.updates.changes import laid_out
from coordcheck.recording.updates.facts import Facts
from coordcheck.recording.updates.parts import Later, Part, Snapshot, Trace, again, parts_of
from coordcheck.recording.updates.replays import Block, FunctionReplay
from coordcheck.runs.names import distinct
from coordcheck.runs.records import RunRecord, Site, Use, measured_row
from coordcheck.runs.words import FORWARD, Kind, Quantity, Status

MAX_UPDATES = 4  # until every parameter has moved: zero initialisations and warm-ups need more than one
ROUNDED = 100  # an update of fewer roundings than this beside its parameter is one that precision blurs
LOST = 0.5  # and of fewer than this one that precision makes something else of
BLURRED = 0.05  # relative error of an update from which on rounding blurred it
EXACT = torch.finfo(torch.float64).eps

ROUNDED_AWAY = "its updates are so small beside it that its own precision loses them"
NO_SOFTMAX = "it multiplies two activations over a growing axis, and no softmax follows: its scale is not judged"
SHORT = {"scaled_dot_product_attention": "sdpa"}


class Effects:
    """The parts of one model, and what is noted of them from its initial state on.

    Args:
        model: the model.
        tracer: what its first forward pass was seen to do.
        initial: every parameter's values at t=0.
        with_gradient: the parameters that the loss depends on.
    """

    def __init__(
        self, model: nn.Module, tracer: Tracer, initial: Mapping[str, Tensor], with_gradient: frozenset[str]
    ) -> None:
        self.model, self.tracer, self.initial = model, tracer, initial
        self.trained = frozenset(n for n, p in model.named_parameters() if p.requires_grad)  # some were made just now
        self.parts = parts_of(Snapshot(model, tracer, initial, self.trained, with_gradient))
        self._names = frozenset(part.name for part in self.parts)
        self._facts = Facts()
        self._counts: dict[str, float | Tensor] = {}
        self._functions: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._lost: set[str] = set()  # parts whose updates are

    @property
    def rounded(self) -> bool:
        """Whether some parameter moved so little that its own precision rounds the update."""
        moves = (
            (part, next((u for t in range(1, MAX_UPDATES + 1) if (u := self._update(part, t)) > 0), math.inf))
            for part in self.parts
        )
        return any(self._rounds(part, first) for part, first in moves)

    def _rounds(self, part: Part, update: float, roundings: float = ROUNDED) -> bool:
        precision = torch.finfo(self.initial[part.parameter].dtype).eps
        weight = self._facts.get(part.name, 0, Quantity.WEIGHT)
        return precision > EXACT and update < roundings * precision * weight

    def waiting(self, steps: int) -> bool:
        """Whether some parameter did not move by its gradient in the first updates; a decay moves it without one."""
        return any(part.trained and not part.hidden and not self._moved(part, steps) for part in self.parts)

    def _moved(self, part: Part, steps: int) -> bool:
        return any(
            self._update(part, step) > 0 and self._facts.get(part.name, step - 1, Quantity.WEIGHT_GRADIENT) > 0
            for step in range(1, steps + 1)
        )

    def _update(self, part: Part, step: int) -> float:
        return self._facts.get(part.name, step, Quantity.WEIGHT_UPDATE)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Without gradients, and in the precision of the parameters."""
        with torch.no_grad(), ExitStack() as modes:
            for device in {initial.device.type for initial in self.initial.values()}:
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            yield

    def note_initial(self) -> None:
        """Note what is known before the first backward pass."""
        with self._plainly():
            self._note_initial()

    def _note_initial(self) -> None:
        for part in self.parts:
            self._facts.put(part.name, 0, Quantity.WEIGHT, _rms(part.rows(self.initial[part.parameter])))
            if part.replay is not None and not part.hidden:
                replay = part.replay
                self._try(part, 0, Quantity.INPUT, partial(getattr, replay, "input_scale"))
                self._measure(part, 0, Quantity.OUTPUT, replay.output)
        self._note_attentions(0, self.tracer)
        self._note_functions()

    def _note_functions(self) -> None:
        """Modules without parameters: the scale of what they take and of what they give."""
        reserved = {*self._names, *_named(self.tracer, self._names)}
        for path, call in self.tracer.calls.items():
            module = self.model if path == ROOT else submodule(self.model, path)
            if call.output is None or any(True for _ in module.parameters()):
                continue
            try:
                taken, given = first_tensor((call.args, call.kwargs)), first_tensor(call.output)
            except ValueError:  # no floating tensor on one side
                continue
            name = distinct(f"{path}/{FORWARD}", reserved)
            self._functions[name] = path, tuple(given.shape)
            self._facts.put(name, 0, Quantity.INPUT, _rms(taken))
            self._facts.put(name, 0, Quantity.OUTPUT, _rms(given))

    def note_gradients(
        self,
        step: int,
        tracer: Trace,
        gradients: Mapping[str, Tensor],
        *,
        factors: Mapping[str, float | Tensor] | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        """Note the gradients before the update that follows step t, and those of the outputs in its forward pass.

        Args:
            step: t.
            tracer: what that pass was seen to do.
            gradients: those that are there now, by parameter.
            factors: what to multiply gradients by, where they are no longer as backward left them.
            loss_scale: what the loss was multiplied by.
        """
        seen = Later.of(tracer)
        for part in self.parts:
            gradient = gradients.get(part.parameter)
            if gradient is not None or not part.trained:
                self._note_gradient(part, step, gradient, (factors or {}).get(part.parameter, 1.0))
                self._note_delta(part, step, again(part, seen), loss_scale)

    def _note_gradient(self, part: Part, step: int, gradient: Tensor | None, factor: float | Tensor) -> None:
        """dL/dp over its coordinates that are not zero."""
        if gradient is not None:
            rows = part.rows(laid_out(gradient, self.initial[part.parameter]))
            # a function that picks leaves most rows of a table without a gradient
            alike = part.use is not None and part.use.linear and not does(part.use.operation, Does.PICKS)
            count = changes.nonzero(rows, some_rows=alike)
            self._counts[part.name] = changes.larger(count, self._counts.get(part.name, count))
            scale = changes.norm(rows) / changes.root(count) * factor
            self._facts.put(part.name, step, Quantity.WEIGHT_GRADIENT, scale)

    def _note_delta(self, part: Part, step: int, use: UseCall | None, loss_scale: float) -> None:
        """dL/dh."""
        if use is not None and use.gradient is not None:
            try:
                delta = _rms(part.channels(use.gradient))
            except (RuntimeError, IndexError):  # channels that are not the last axis
                delta = _rms(use.gradient)
            scale = delta / abs(use.downstream * loss_scale) if use.downstream else math.nan
            self._facts.put(part.name, step, Quantity.GRADIENT, scale)

    def note_updates(self, step: int) -> None:
        """Note how far the parameters have moved, and what that alone makes of their initial inputs."""
        with self._plainly():
            self._note_updates(step)

    def _note_updates(self, step: int) -> None:
        current = dict(self.model.named_parameters())
        differences: dict[str, Tensor] = {}
        room = changes.Room()
        for part in self.parts:
            if not part.trained:
                continue
            initial, parameter = self.initial[part.parameter], current.get(part.parameter)
            if parameter is None or parameter.shape != initial.shape:
                self.tracer.skipped[f"{Quantity.OWN_UPDATE.value} of {part.name} (it was replaced)"] += 1
                continue
            now = laid_out(parameter.detach(), initial)
            if part.parameter not in differences:
                differences = {part.parameter: room.difference(now, initial)}  # one at a time is held
            whole = differences[part.parameter]
            change = part.rows(whole)
            count = self._counts.get(part.name, 0.0)
            scale = changes.norm(change) / changes.root(count, change.numel())
            self._facts.put(part.name, step, Quantity.WEIGHT_UPDATE, scale)
            matrix = _as_matrix(part, change)
            if matrix is not None:
                self._facts.put(part.name, step, Quantity.WEIGHT_UPDATE_NORM, changes.spectral_norm(matrix))
            if part.replay is not None and not part.hidden:
                own = partial(part.replay.own_update, now, whole)
                self._measure(part, step, Quantity.OWN_UPDATE, own)

    def mend_rounded(self, step: int, size: Callable[[str], float | None]) -> None:
        """Put right what was noted of updates that are gradients times a factor, where rounding hides the factor.

        What is lost to rounding is not judged.

        Args:
            step: t, after the update.
            size: the factor by a parameter's name, zero where it is lost, None where there is none.
        """
        for part in self.parts:
            update = self._update(part, step)
            if not (part.trained and update) or not self._rounds(part, update):
                continue
            factor = size(part.parameter)
            if factor == 0 and self._rounds(part, update, LOST):
                self._lost.add(part.name)
            exact = (factor or 0.0) * self._facts.get(part.name, step - 1, Quantity.WEIGHT_GRADIENT)
            if exact > 0 and abs(update / exact - 1) > BLURRED:
                self._facts.put(part.name, step, Quantity.WEIGHT_UPDATE, exact)
                for lost in (Quantity.WEIGHT_UPDATE_NORM, Quantity.OWN_UPDATE):
                    self._facts.drop(part.name, step, lost)

    def note_trace(self, step: int, later: Trace) -> None:
        """Note a later forward pass."""
        seen = Later.of(later)
        with self._plainly():
            for part in self.parts:
                use = again(part, seen)
                if use is not None and isinstance(part.replay, FunctionReplay) and _comparable(part, use):
                    self._measure(part, step, Quantity.INHERITED, lambda p=part, use=use: p.replay.inherited(use))
        self._note_attentions(step, later)

    def _note_attentions(self, step: int, tracer: Trace) -> None:
        for name, attention in _named(tracer, self._names).items():
            logits = attention.logits
            if logits is not None:
                scale = _rms(logits) if isinstance(logits, Tensor) else logits
                self._facts.put(name, step, Quantity.LOGITS, scale)

    def _measure(self, part: Part, step: int, quantity: Quantity, replay: Any) -> None:
        if part.block is None or not part.block.stacked:  # else which part of the output is its own is not known
            self._try(part, step, quantity, lambda: _rms(part.channels(replay())))

    def _try(self, part: Part, step: int, quantity: Quantity, scale: Callable[[], float | Tensor]) -> None:
        try:
            self._facts.put(part.name, step, quantity, scale())
        except Exception as error:  # of the user's module or an operation that cannot be called again
            self.tracer.skipped[f"{quantity.value} of {part.name} ({type(error).__name__})"] += 1

    def write(self, record: RunRecord, degrees: Mapping[str, float]) -> None:
        """Add sites, rows and uses to the record.

        Args:
            record: the run's, whose sites so far keep their numbers.
            degrees: of each parameter's update in its gradient, where that was measured.
        """
        attentions = _named(self.tracer, self._names)
        first = len(record.sites)
        names = [*(part.name for part in self.parts), *attentions, *self._functions]
        index = {name: first + number for number, name in enumerate(names)}
        for part in self.parts:
            value = part.rows(self.initial[part.parameter])
            kind, dtype = Kind.PARAMETER, str(value.dtype).removeprefix("torch.")
            record.sites.append(Site(part.name, index[part.name], kind, tuple(value.shape), dtype))
        shapes = {name: (attention.head_size,) for name, attention in attentions.items()}
        for name, shape in (shapes | {name: shape for name, (_, shape) in self._functions.items()}).items():
            record.sites.append(Site(name, index[name], Kind.FUNCTION, shape, "float32"))
        for (name, step, quantity), scale in self._facts.all().items():
            if name in index:
                record.rows.append(measured_row(index[name], step, quantity, scale))
        nodes: dict[Node, int] = {
            part.use: index[part.name] for part in reversed(self.parts) if part.use and not part.block
        }
        nodes |= {attention: index[name] for name, attention in attentions.items()}
        for part in self.parts:
            record.uses.append(self._use(part, index[part.name], nodes, degrees.get(part.parameter)))
        judged_ones = set(self.tracer.attentions)
        for name, attention in attentions.items():
            feeds = tuple(sorted(nodes[node] for node in attention.fed if node in nodes))
            judged = attention in judged_ones
            what = attention.layer, attention.operation, attention.head_size, 1, attention.scale, None, True, feeds
            record.uses.append(Use(index[name], "", *what, "" if judged else NO_SOFTMAX))
        for name, (path, _) in self._functions.items():
            record.uses.append(Use(index[name], "", path, FORWARD, 1, 1, 1.0, None, False, ()))
        record.outside = {path: factor for path, factor in self.tracer.outside.items() if math.isfinite(factor)}
        record.notes.extend(f"{what} was not measured" for what in self.tracer.skipped if " of " in what)

    def _use(self, part: Part, site: int, nodes: Mapping[Node, int], degree: float | None) -> Use:
        shape = tuple(self.initial[part.parameter].shape)
        fan_in, fan_out = 1, math.prod(shape) or 1
        feeds: tuple[int, ...] = ()
        operation, layer, multiplier, exact = "", part.parameter.rpartition(".")[0] or ROOT, 1.0, False
        if len(shape) >= 2:
            fan_in, fan_out = math.prod(shape[1:]) or 1, shape[0] or 1
        if part.replay is not None:
            operation, layer, multiplier = part.replay.operation, part.replay.layer, part.replay.multiplier
            multiplier = multiplier if math.isfinite(multiplier) else 0.0
        if part.use is not None:
            feeds = tuple(sorted({nodes[node] for node in part.use.fed if node in nodes}))
            exact = part.use.linear
            fan_in, fan_out = part.use.fans or (1, math.prod(shape) or 1)
        fan_out = part.block.size if isinstance(part.block, Block) and not part.block.stacked else fan_out
        return Use(
            *(site, part.parameter, layer, operation, max(fan_in, 1), max(fan_out, 1), multiplier),
            *(degree, exact, feeds, part.hidden or (ROUNDED_AWAY if part.name in self._lost else "")),
        )


def _comparable(part: Part, later: UseCall) -> bool:
    """Whether a later call saw the same examples: experts see other tokens once the routing changes."""
    use = part.use
    position = None if use is None else use.input_position
    if part.hidden or not part.trained or use is None or position is None:
        return part.trained and not part.hidden
    same_groups = not does(use.operation, Does.GROUPED) or all(
        torch.equal(before, after)
        for before, after in zip(use.leaves, later.leaves, strict=True)
        if isinstance(before, Tensor) and not before.is_floating_point()
    )
    return same_groups and bool(use.leaves[position].shape == later.leaves[position].shape)


def _named(tracer: Trace, taken: Container[str]) -> dict[str, AttentionCall]:
    """Products of two activations by site name: `module path/operation`, with `#k` from the second in one module on."""
    named: dict[str, AttentionCall] = {}
    counts = Counter[str]()
    for product in dict.fromkeys([*tracer.attentions, *tracer.products]):
        base = f"{product.layer}/{SHORT.get(product.operation, product.operation)}"
        counts[base] += 1
        named[distinct(base if counts[base] == 1 else f"{base}#{counts[base]}", taken)] = product
    return named


def _as_matrix(part: Part, change: Tensor) -> Tensor | None:
    """A change as the (fan-out, fan-in) matrix that it acts as, where there is one."""
    if part.use is None or not part.use.matrix or part.use.operation == "embedding":
        return None
    if change.dim() == 2:
        return change
    return (
        change.flatten(1) if part.use.operation.startswith("conv") and "transpose" not in part.use.operation else None
    )


def _rms(tensor: Tensor) -> float | Tensor:
    try:
        return scales.rms_of(tensor)
    except scales.NotMeasurable as reason:
        return 1.0 if reason.status is Status.INTEGER else math.nan
