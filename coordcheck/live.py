"""Own updates inside a training loop of the user's own: the diagnosis of the run that is trained anyway."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.calls import leaves
from coordcheck.changes import gradients_of, initial_values
from coordcheck.degrees import degrees
from coordcheck.effects import MAX_UPDATES, Effects
from coordcheck.inputs import InitialInputs, any_of
from coordcheck.modes import transforming
from coordcheck.records import Quantity, Row, RunRecord
from coordcheck.retracing import Retracer
from coordcheck.shards import local_part
from coordcheck.tracing import Tracer


class LiveEffects:
    """Follows one model through its first updates: what each parameter's own update does to its initial input.

    The calls of steps 0 and 1 are traced, and further ones while a parameter that has a gradient has not moved. It
    holds a copy of the parameters as they were at t=0, and a subset of the rows that each of them acted on.
    """

    def __init__(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        self._initial: dict[str, Tensor] = {}
        self._effects: Effects | None = None
        self._degrees: dict[str, float] = {}
        self._tracer: Tracer | Retracer | None = None
        self._tracing = False
        self._beginning = threading.RLock()
        self._step = -1
        self._noted: set[str] = set()  # parameters whose gradients of this step were
        self._inputs = InitialInputs(fixed=False)
        self._moved: dict[int, list[Tensor | bool]] = {}  # flags of the steps whose input may be another than at t=0
        self._more = True
        self._reason = ""

    def begin(self, step: int, args: Any, kwargs: Any) -> None:
        """A call of the model begins that is recorded as step `step`."""
        with self._beginning:  # a copy of the parameters lets other threads run
            self._begin(step, args, kwargs)

    def _begin(self, step: int, args: Any, kwargs: Any) -> None:
        if self._tracing and self._tracer is not None and self._tracer.elsewhere:
            return  # of two calls at the same time, the first one is traced
        self.end()
        self._tracer = None
        if transforming():
            self._reason = "the model is called inside a function transform, such as torch.vmap"
        if self._reason or not self._more:
            return
        if step > 0 and self._effects is None:
            self._reason = "the first update was made without a call of the model in training"
            return
        if self._effects is not None and step > self._step:
            self._effects.note_updates(step)
            self._more = step < MAX_UPDATES and self._effects.waiting(step)
        self._step, self._noted = step, set()
        if self._effects is not None and not self._more:  # this pass will not be asked for its gradients
            self._tracer = Retracer(self._model, self._effects.tracer)
        else:
            tracer = Tracer(self._model, keep_calls=step == 0, sampled=True)
            if any(not _plain(parameter) for parameter in tracer.parameters.values()):
                self._reason = "parameters are sharded, of a class of their own, or not made yet"
                return
            if step == 0:
                self._initial = initial_values(tracer.parameters)
            self._tracer = tracer
        self._tracing = True
        self._compare(args, kwargs)
        self._tracer.begin(args, kwargs)

    def _compare(self, args: Any, kwargs: Any) -> None:
        """Note whether the input is the one of t=0."""
        if self._step == 0:
            self._inputs.clear()
        tensors = [local_part(leaf) for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._moved[self._step] = list(self._inputs.moved(tensors))

    def end(self) -> None:
        """The call is over."""
        if self._tracing and self._tracer is not None:
            self._tracing = False
            self._tracer.end()  # which it did by itself, but for a call that never returned
            if self._step > 0 and self._effects is not None:
                self._effects.note_trace(self._step, self._tracer)
                if not self._more:  # nothing is called with the parameters' values again, but their shapes are told
                    self._initial.update({n: torch.empty_like(p, device="meta") for n, p in self._initial.items()})

    def updates(self, optimizer: Optimizer) -> None:
        """An optimizer is about to make its update, and the gradients of its parameters are there."""
        self.end()
        tracer = self._tracer
        if not isinstance(tracer, Tracer):
            return
        if self._effects is None:
            self._degrees = degrees(self._model, self._optimizers)
            trained = frozenset(name for name, p in tracer.parameters.items() if p.requires_grad)
            self._effects = Effects(self._model, tracer, self._initial, trained)
            self._effects.note_initial()
        if self._more:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            own = {n: p for n, p in tracer.parameters.items() if id(p) in held and n not in self._noted}
            gradients = gradients_of(own)
            self._noted |= set(gradients)
            self._effects.note_gradients(self._step, tracer, gradients)

    def write(self, record: RunRecord) -> None:
        """Add what was noted to the record, and let go of the model's copies."""
        self.end()
        effects, self._effects, self._initial, self._tracer = self._effects, None, {}, None
        self._inputs.clear()
        if effects is None or self._step < 1:
            why = self._reason or "the model itself was not called in training before and after an update"
            record.notes.append(f"own updates were not recorded: {why}")
            return
        moved = {step for step, flags in self._moved.items() if any_of(flags)}
        before = len(record.rows)
        effects.write(record, self._degrees)
        unknown = sorted({use.parameter for use in record.uses if use.parameter} - self._degrees.keys())
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            record.notes.append(f"how the update of {unknown[0]}{more} depends on the gradient's size was not measured")
        vectors = {site.order for site in record.sites if len(site.shape) < 2}
        record.rows[before:] = [row for row in record.rows[before:] if _kept(row, moved, vectors)]


def _kept(row: Row, moved: set[int], vectors: set[int]) -> bool:
    """Whether a row says something: no comparison of two batches, no gradient of a loss that a scaler multiplied."""
    if row.quantity is Quantity.INHERITED:
        return row.step not in moved
    # at outputs it is still multiplied, and infinite where the update was skipped; beside a vector's own gradient, this
    # would look like rounding
    return row.quantity is not Quantity.GRADIENT or (row.site not in vectors and not row.status.not_finite)


def _plain(parameter: Tensor) -> bool:
    return type(parameter) in (nn.Parameter, Tensor) and parameter.device.type != "meta"
