"""Own updates inside a training loop of the user's own: the diagnosis of the run that is trained anyway."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.recording.distributed.shards import local_part
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.backwards import AfterBackward
from coordcheck.recording.hooks.modes import transforming
from coordcheck.recording.hooks.wrappers import loss_scale
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.layers.windows import InitialInputs, any_of
from coordcheck.recording.updates import gradients
from coordcheck.recording.updates.degrees import degrees, notes_on
from coordcheck.recording.updates.first_updates import told_in_loop
from coordcheck.recording.updates.gradients import gradients_of
from coordcheck.recording.updates.own_updates import MAX_UPDATES, OwnUpdates, certain
from coordcheck.recording.updates.rows import write_own_updates
from coordcheck.recording.updates.settling import settled_degrees
from coordcheck.recording.updates.values import initial_values
from coordcheck.runs.records import Row, RunRecord
from coordcheck.runs.words import Quantity

TURNED = 0.5  # in place of the degree where gradients are changed, as by clipping some of their coordinates: neither
UNCHANGED = 1e-5  # relative difference of two norms of one gradient


class OwnUpdatesInLoop:
    """Follows one model through its first updates: what each parameter's own update does to its initial input.

    The calls of steps 0 and 1 are traced, and further ones while a parameter that has a gradient has not moved. It
    holds a copy of the parameters as they were at t=0, and a subset of the rows that each of them acted on.
    """

    def __init__(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        self._initial: dict[str, Tensor] = {}
        self._own: OwnUpdates | None = None
        self._degrees: dict[str, float] = {}
        self._tracer: Tracer | None = None
        self._tracing = False
        self._beginning = threading.RLock()
        self._step = -1
        self._noted: set[str] = set()  # parameters whose gradients of this step were
        self._arrived: dict[str, gradients.Arrived] = {}  # the last gradients, as backward left them
        self._changing = frozenset[str]()  # those whose updates become others after some steps: not judged by these
        self._turned: set[str] = set()  # parameters whose gradients became others than these times a factor
        self._listening: AfterBackward | None = None
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
        if step > 0 and self._own is None:
            self._reason = "the first update was made without a call of the model in training"
            return
        if self._own is not None and step > self._step:
            self._own.note_updates(step)
            self._own.mend_rounded(step, self._unrounded)
            self._more = step < MAX_UPDATES and self._own.waiting(certain(step, self._optimizers))
        self._step, self._noted, self._arrived = step, set(), {}
        if self._own is not None and not self._more:  # this pass will not be asked for its gradients
            self._tracer = Tracer(self._model, sampled=True, gradients=False)
            self._listen_no_longer()
        else:
            tracer = Tracer(self._model, keep_calls=step == 0, sampled=True)
            if any(not _plain(parameter) for parameter in tracer.parameters.values()):
                self._reason = "parameters are sharded, of a class of their own, or not made yet"
                return
            if step == 0:
                self._initial = initial_values(tracer.parameters)
                self._listen_no_longer()  # to the parameters of a call that no update followed
                self._listening = AfterBackward(tracer.parameters.values(), self._read, self._not_read)
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
            if self._step > 0 and self._own is not None:
                self._own.note_trace(self._step, self._tracer)
                if not self._more:  # nothing is called with the parameters' values again, but their shapes are told
                    self._initial.update({n: torch.empty_like(p, device="meta") for n, p in self._initial.items()})

    def updates(self, optimizer: Optimizer, *, made: bool = False) -> None:
        """An optimizer is about to make its update, and the gradients of its parameters are there.

        Args:
            optimizer: which.
            made: that was before, and it has made its update: what was called since was called by a closure.
        """
        self.end()
        tracer = self._tracer
        if tracer is None:
            return
        if self._own is None:
            self._degrees = degrees(self._model, self._optimizers)
            others = settled_degrees(self._model, self._optimizers, self._degrees)
            self._changing = frozenset(others)
            trained = frozenset(name for name, p in tracer.parameters.items() if p.requires_grad)
            self._own = OwnUpdates(self._model, tracer, self._initial, trained)
            self._own.note_initial()
        if self._more:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            own = {n: p for n, p in tracer.parameters.items() if id(p) in held and n not in self._noted}
            given, scale = gradients_of(own), loss_scale(optimizer)
            factors = {name: self._since_backward(name, gradient, scale) for name, gradient in given.items()}
            if (
                self._turned & own.keys()
            ):  # others may only look as if it were by a factor, such as those of few numbers
                self._turned |= {n for n, by in factors.items() if self._follows(n) and not _is_one(by)}
            if made:
                lost = self._lost(own, given)
                given, factors = {**given, **lost}, {**factors, **dict.fromkeys(lost, 1.0)}
            self._noted |= set(given)
            self._arrived = {name: a for name, a in self._arrived.items() if name not in own or name in given}
            self._own.note_gradients(self._step, tracer, given, factors=factors, loss_scale=scale)

    def _lost(self, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stands for gradients that came and went inside of a step that calls a closure."""
        lost = {n: a for n, a in self._arrived.items() if n in own and gradients.gone(a, given.get(n))}
        return {name: gradients.stand_in(arrived, own[name].detach()) for name, arrived in lost.items()}

    def _read(self) -> None:
        """A backward pass is over: its gradients are there, and nobody has clipped or scaled them."""
        if isinstance(self._tracer, Tracer):
            left = {n: p for n, p in self._tracer.parameters.items() if n not in self._noted}
            self._arrived.update({name: gradients.arrived(g) for name, g in gradients_of(left).items()})

    def _not_read(self, error: Exception) -> None:
        self._arrived = {}  # and what the optimizer is given counts

    def _since_backward(self, name: str, gradient: Tensor, scale: float) -> float | Tensor:
        """What to multiply a gradient by that an optimizer is given, to have its scale as backward left it."""
        if name not in self._arrived:  # it was put there by hand
            return 1.0
        arrived = self._arrived[name] = self._arrived[name].unscaled(scale)
        if self._follows(name) and gradients.turned(arrived, gradient):
            self._turned.add(name)
        return gradients.factor(arrived, gradient)

    def _follows(self, name: str) -> bool:
        """Whether the size of a parameter's update is that of its gradient, as under SGD."""
        return self._degrees.get(name, 0.0) > 0.5

    def _unrounded(self, name: str) -> float | None:
        """The size of a parameter's update beside its gradient, where the one is the other times a factor."""
        if name not in self._arrived or name in self._turned or not self._follows(name):
            return None
        now = dict(self._model.named_parameters())[name]
        return gradients.unrounded(self._arrived[name], self._initial[name], now)

    def _listen_no_longer(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def write(self, record: RunRecord) -> None:
        """Add what was noted to the record, and let go of the model's copies."""
        self.end()
        self._listen_no_longer()
        own, self._own, self._initial, self._tracer = self._own, None, {}, None
        self._inputs.clear()
        if own is None or self._step < 1:
            why = self._reason or "the model itself was not called in training before and after an update"
            record.notes.append(f"own updates were not recorded: {why}")
            return
        moved = {step for step, flags in self._moved.items() if any_of(flags)}
        before = len(record.rows)
        write_own_updates(own, record, {**self._degrees, **dict.fromkeys(self._turned | self._changing, TURNED)})
        record.parameters = told_in_loop(own, self._step, record.parameters)
        unknown = {use.parameter for use in record.uses if use.parameter} - self._degrees.keys()
        record.notes.extend(notes_on(unknown, self._turned))
        vectors = {site.order for site in record.sites if len(site.shape) < 2}
        record.rows[before:] = [row for row in record.rows[before:] if _kept(row, moved, vectors)]


def _kept(row: Row, moved: set[int], vectors: set[int]) -> bool:
    """Whether a row says something: no comparison of two batches, no gradient of a loss that a scaler multiplied."""
    if row.quantity is Quantity.INHERITED:
        return row.step not in moved
    # at outputs it is still multiplied, and infinite where the update was skipped; beside a vector's own gradient, this
    # would look like rounding
    return row.quantity is not Quantity.GRADIENT or (row.site not in vectors and not row.status.not_finite)


def _is_one(factor: float | Tensor) -> bool:
    return abs(float(factor) - 1) < UNCHANGED


def _plain(parameter: Tensor) -> bool:
    return type(parameter) in (nn.Parameter, Tensor) and parameter.device.type != "meta"
