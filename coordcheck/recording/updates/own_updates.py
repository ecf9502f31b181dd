"""What each parameter of one model did: the scales of a diagnosis, measured on traces, gradients and updates.

Everything here is local to one parameter: its scale, its gradient, its update, and that update's effect on the input
that its operation saw at t=0. Faults upstream or downstream do not change these, so one fault shows in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.recording import scales
from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.functions import Does, does
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.masks import rms_without_mask
from coordcheck.recording.updates.degrees import is_torchs
from coordcheck.recording.updates.forward_functions import forward_modules, named_products
from coordcheck.recording.updates.norms import larger, nonzero, norm, root, spectral_norm, total
from coordcheck.recording.updates.parameter_uses import (
    Later,
    ParameterUse,
    Snapshot,
    Trace,
    again,
    comparable,
    parameter_uses,
)
from coordcheck.recording.updates.replays import FunctionReplay
from coordcheck.recording.updates.scale_table import ScaleTable
from coordcheck.recording.updates.values import Scratch, laid_out
from coordcheck.runs.words import Quantity, Status

MAX_UPDATES = 4  # until every parameter has moved: zero initialisations and warm-ups need more than one
ROUNDED = 100  # an update of fewer roundings than this beside its parameter is one that precision blurs
LOST = 0.5  # and of fewer than this one that precision makes something else of
BLURRED = 0.05  # relative error of an update from which on rounding blurred it
EXACT = torch.finfo(torch.float64).eps


class OwnUpdates:
    """The parameters of one model in their uses, and the scales that are measured from the initial state on.

    Args:
        model: the model.
        tracer: what its first forward pass was seen to do.
        initial: every parameter's values at t=0.
        with_gradient: the parameters that the loss depends on.

    Attributes:
        uses: what the scales are of.
        products: the products of two activations by site name.
        modules: the modules without parameters by site name.
        scales: what was measured of all of them.
        lost: names of uses whose updates rounding takes away.
    """

    def __init__(
        self, model: nn.Module, tracer: Tracer, initial: Mapping[str, Tensor], with_gradient: frozenset[str]
    ) -> None:
        self.model, self.tracer, self.initial = model, tracer, initial
        trained = frozenset(n for n, p in model.named_parameters() if p.requires_grad)  # some were made just now
        self.uses = parameter_uses(Snapshot(model, tracer, initial, trained, with_gradient))
        self._names = frozenset(use.name for use in self.uses)
        self.products = named_products(tracer, self._names)
        self.modules = forward_modules(model, tracer, {*self._names, *self.products})
        for path in tracer.places.scored(tracer.attentions):  # whose scale is judged as that of the logits
            self.modules = {name: module for name, module in self.modules.items() if module.path != path}
        self.scales = ScaleTable()
        self.lost: set[str] = set()
        self._counts: dict[str, float | Tensor] = {}  # coordinates of a gradient that are not zero

    @property
    def rounded(self) -> bool:
        """Whether some parameter moved so little that its own precision rounds the update."""
        moves = (
            (use, next((u for t in range(1, MAX_UPDATES + 1) if (u := self._update(use, t)) > 0), math.inf))
            for use in self.uses
        )
        return any(self._rounds(use, first) for use, first in moves)

    def _rounds(self, use: ParameterUse, update: float, roundings: float = ROUNDED) -> bool:
        precision = torch.finfo(self.initial[use.parameter].dtype).eps
        weight = self.scales.get(use.name, 0, Quantity.WEIGHT)
        return precision > EXACT and update < roundings * precision * weight

    def waiting(self, steps: int) -> bool:
        """Whether some parameter did not move by its gradient in the first updates; a decay moves it without one."""
        return any(use.trained and not use.hidden and not self.scales.moved(use.name, steps) for use in self.uses)

    def _update(self, use: ParameterUse, step: int) -> float:
        return self.scales.get(use.name, step, Quantity.WEIGHT_UPDATE)

    def note_initial(self) -> None:
        """Note what is known before the first backward pass."""
        with _plainly(self.initial):
            for use in self.uses:
                if use.made is None or (not use.hidden and use.made.sized):
                    self._try(use, 0, Quantity.WEIGHT, partial(_initial_scale, use, self.initial))
                if use.replay is not None and not use.hidden:
                    self._try(use, 0, Quantity.INPUT, partial(getattr, use.replay, "input_scale"))
                    if use.made is None or use.made.sized:
                        self._measure(use, 0, Quantity.OUTPUT, use.replay.output)
            self._note_products(0, self.tracer)
            for name, product in self.products.items():
                self.scales.put(name, 0, Quantity.INPUT, product.met)
            for name, module in self.modules.items():
                self.scales.put(name, 0, Quantity.INPUT, _rms(module.taken, rms_without_mask))
                self.scales.put(name, 0, Quantity.OUTPUT, _rms(module.given, rms_without_mask))

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
        for use in self.uses:
            gradient = gradients.get(use.parameter)
            if gradient is not None or not use.trained:
                self._note_gradient(use, step, gradient, (factors or {}).get(use.parameter, 1.0))
                self._note_delta(use, step, again(use, seen), loss_scale)

    def _note_gradient(self, use: ParameterUse, step: int, gradient: Tensor | None, factor: float | Tensor) -> None:
        """dL/dp over its coordinates that are not zero."""
        if gradient is not None:
            rows = use.rows(laid_out(gradient, self.initial[use.parameter]), gradient=True)
            # a function that picks leaves most rows of a table without a gradient
            alike = use.call is not None and use.call.linear and not does(use.call.operation, Does.PICKS)
            count = nonzero(rows, some_rows=alike)
            self._counts[use.name] = larger(count, self._counts.get(use.name, count))
            self.scales.put(use.name, step, Quantity.WEIGHT_GRADIENT, norm(rows) / root(count) * factor)

    def _note_delta(self, use: ParameterUse, step: int, call: UseCall | None, loss_scale: float) -> None:
        """dL/dh."""
        if call is not None and call.gradient is not None:
            try:
                delta = _rms(use.channels(call.gradient, gradient=True))
            except (RuntimeError, IndexError):  # channels that are not the last axis
                delta = _rms(call.gradient)
            scale = delta / abs(call.downstream * loss_scale) if call.downstream else math.nan
            self.scales.put(use.name, step, Quantity.GRADIENT, scale)

    def note_updates(self, step: int) -> None:
        """Note how far the parameters have moved, and what that alone makes of their initial inputs."""
        current, scratch, known = dict(self.model.named_parameters()), Scratch(), ""
        with _plainly(self.initial):
            for use in self.uses:
                if not use.trained:
                    continue
                initial, parameter = self.initial[use.parameter], current.get(use.parameter)
                if parameter is None or parameter.shape != initial.shape:
                    self.tracer.skipped[f"{Quantity.OWN_UPDATE.value} of {use.name} (it was replaced)"] += 1
                    continue
                if use.parameter != known:  # the uses of one parameter follow one another, mostly
                    now = laid_out(parameter.detach(), initial)
                    difference, known = scratch.difference(now, initial), use.parameter
                if use.made is None:
                    self._note_update(use, step, use.rows(difference))
                    if use.replay is not None and not use.hidden:
                        self._measure(use, step, Quantity.OWN_UPDATE, partial(use.replay.own_update, now, difference))
                elif not use.hidden:
                    self._try(
                        use, step, Quantity.OWN_UPDATE, partial(_update_made, self.scales, use, step, now, current)
                    )

    def _note_update(self, use: ParameterUse, step: int, change: Tensor) -> None:
        count = root(self._counts.get(use.name, 0.0), change.numel())
        self.scales.put(use.name, step, Quantity.WEIGHT_UPDATE, norm(change) / count)
        matrix = _as_matrix(use, change)
        if matrix is not None:
            self.scales.put(use.name, step, Quantity.WEIGHT_UPDATE_NORM, spectral_norm(matrix))
            self.scales.put(use.name, step, Quantity.WEIGHT_UPDATE_ABS, total(matrix) / count**2)

    def mend_rounded(self, step: int, size: Callable[[str], float | None]) -> None:
        """Put right what was noted of updates that are gradients times a factor, where rounding hides the factor.

        What is lost to rounding is not judged.

        Args:
            step: t, after the update.
            size: the factor by a parameter's name, zero where it is lost, None where there is none.
        """
        for use in self.uses:
            update = self._update(use, step)
            if not (use.trained and update) or not self._rounds(use, update):
                continue
            factor = size(use.parameter)
            if factor == 0 and self._rounds(use, update, LOST):
                self.lost.add(use.name)
            exact = (factor or 0.0) * self.scales.get(use.name, step - 1, Quantity.WEIGHT_GRADIENT)
            if exact > 0 and abs(update / exact - 1) > BLURRED:
                self.scales.put(use.name, step, Quantity.WEIGHT_UPDATE, exact)
                for lost in (Quantity.WEIGHT_UPDATE_NORM, Quantity.WEIGHT_UPDATE_ABS, Quantity.OWN_UPDATE):
                    self.scales.drop(use.name, step, lost)

    def note_trace(self, step: int, later: Trace) -> None:
        """Note a later forward pass."""
        seen = Later.of(later)
        zero = {use.name for use in self.uses if self.scales.get(use.name, 0, Quantity.INPUT, math.nan) == 0}
        with _plainly(self.initial):
            for use in self.uses:
                call = again(use, seen)
                if call is not None and isinstance(use.replay, FunctionReplay) and comparable(use, call):
                    self._measure(use, step, Quantity.INHERITED, partial(use.replay.inherited, call))
                    if use.name in zero and call.matrix:  # of zeros, an update makes nothing
                        use.replay.act_on(call)
                        self._try(use, 0, Quantity.INPUT, partial(getattr, use.replay, "input_scale"))
        self._note_products(step, later)

    def _note_products(self, step: int, tracer: Trace) -> None:
        for name, product in named_products(tracer, self._names).items():
            if product.logits is not None:
                scale = _rms(product.logits) if isinstance(product.logits, Tensor) else product.logits
                self.scales.put(name, step, Quantity.LOGITS, scale)

    def _measure(self, use: ParameterUse, step: int, quantity: Quantity, replay: Callable[[], Tensor]) -> None:
        if use.block is None or not use.block.stacked:  # else which part of the output is its own is not known
            self._try(use, step, quantity, lambda: _rms(use.channels(replay())))

    def _try(self, use: ParameterUse, step: int, quantity: Quantity, scale: Callable[[], float | Tensor]) -> None:
        try:
            self.scales.put(use.name, step, quantity, scale())
        except Exception as error:  # of the user's module or an operation that cannot be called again
            self.tracer.skipped[f"{quantity.value} of {use.name} ({type(error).__name__})"] += 1


def certain(steps: int, optimizers: Iterable[Any]) -> int:
    """How many of the first updates count: the last one by other optimizers than torch's may be none yet."""
    return steps if all(map(is_torchs, optimizers)) else steps - 1


def _as_matrix(use: ParameterUse, change: Tensor) -> Tensor | None:
    """A change as the (fan-out, fan-in) matrix that it acts as, where there is one."""
    if use.call is None or not use.call.matrix or use.call.operation == "embedding":
        return None
    if change.dim() == 2:
        return change
    convolves = use.call.operation.startswith("conv") and "transpose" not in use.call.operation
    return change.flatten(1) if convolves else None


def _rms(tensor: Tensor, rms: Callable[[Tensor], float | Tensor] = scales.rms_of) -> float | Tensor:
    try:
        return rms(tensor)
    except scales.NotMeasurable as reason:
        return 1.0 if reason.status is Status.INTEGER else math.nan


def _update_made(
    noted: ScaleTable, use: ParameterUse, step: int, now: Tensor, current: Mapping[str, Tensor]
) -> float | Tensor:
    """Note what an update made of the weight that is computed from it; RMS of what that makes of its input."""
    if use.made is None or use.replay is None:
        return math.nan
    change = use.made.change(now, current)
    noted.put(use.name, step, Quantity.WEIGHT_UPDATE, _rms(change) / use.made.met)
    noted.put(use.name, step, Quantity.WEIGHT_UPDATE_ABS, total(change) / max(change.numel(), 1) / use.made.met)
    return _rms(use.replay.own_update(now, change))


def _initial_scale(use: ParameterUse, initial: Mapping[str, Tensor]) -> float | Tensor:
    return _rms(use.weight(initial))


@contextmanager
def _plainly(initial: Mapping[str, Tensor]) -> Iterator[None]:
    """Without gradients, and in the precision of the parameters."""
    with torch.no_grad(), ExitStack() as modes:
        for device in {values.device.type for values in initial.values()}:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield
