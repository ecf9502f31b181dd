"""One diagnosis: a fresh model, a tiny batch, one or two updates, and what each parameter's own update did."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import probes, to_device
from coordcheck.recording.graph.arguments import double_of
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.optimizers import optimizer_settings, parameter_infos
from coordcheck.recording.updates.degrees import degrees, is_plain, is_torchs, notes_on
from coordcheck.recording.updates.first_updates import told_in_loop
from coordcheck.recording.updates.gradients import gradients_of
from coordcheck.recording.updates.own_updates import MAX_UPDATES, OwnUpdates, certain
from coordcheck.recording.updates.parameter_uses import Trace
from coordcheck.recording.updates.rows import write_own_updates
from coordcheck.recording.updates.settling import LATER, settle, settled_degrees
from coordcheck.recording.updates.values import initial_values
from coordcheck.recording.updates.whole_matrices import may_reshape, reshaped
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Quantity
from coordcheck.training.first_update import with_first_update
from coordcheck.training.trials import Prepared, Run, backward, check_scalar, prepared
from coordcheck.training.whole_degrees import lessen_eps, whole_degrees, without_decay

RATE = 0.01  # times the learning rate, of the updates on the whole batch


def diagnose_run(run: Run, record: RunRecord) -> None:
    """Diagnose one run, adding its sites, rows and uses to the record.

    Raises:
        CoordCheckError: what `build`, the batch or the loss gave cannot be checked.
        Exception: whatever the model raises on the probe, and on the whole batch.
    """
    session = _precise(run, _first_that_runs(run))
    if session.reshaped and not session.own.rounded:
        _note_whole_batch(run, session)
    if not record.parameters:
        infos = told_in_loop(session.own, MAX_UPDATES, session.infos)
        record.parameters, notes = with_first_update(run, infos)
        record.notes.extend(notes)
    found, told = session.degrees, not session.first_gradients
    if not told and run.probe is not None and run.probe.degrees:
        found, told = whole_degrees(run, session.first_gradients), True
    write_own_updates(session.own, record, found)
    record.notes.extend(session.notes)
    if told:
        record.notes.extend(notes_on(session.held - found.keys(), set()))


def _first_that_runs(run: Run) -> _Session:
    """The diagnosis on the smallest probe that the model accepts, and whose loss says something."""
    given = run.probe.batch if run.probe is not None else None
    number = 0
    while True:
        ready = prepared(run)
        batch = ready.batches.at(0, ready.device)
        found = [given] if given is not None else probes(batch)
        last = number + 1 >= len(found)
        try:
            with user_code("the probe"):
                session = _Session(ready, to_device(found[number], ready.device))
                session.begin()
        except Exception:  # of the user's model, which may not accept fewer examples or tokens
            if last:
                raise
        else:
            if last or session.says_something:
                session.train()
                return session
        number += 1


def _precise(run: Run, session: _Session) -> _Session:
    """The same diagnosis in double precision, where the parameters' own would tell of roundings.

    Of updates that are so small that it rounds them; and of optimizers that are not torch's own, which may divide by
    what is zero but for roundings: those that work in the eigenbasis of a gradient, such as SOAP, make of them numbers
    as large as the others.
    """
    rounded = session.own.rounded
    if session.device.type == "mps" or (not rounded and all(map(is_torchs, session.optimizers))):
        return session
    try:
        with user_code("the probe"):
            precise = _Session(_doubled(prepared(run)), _widened(session.probe))
            precise.begin()
            precise.train()
    except Exception:  # of a model that insists on its own precision
        if rounded:
            session.notes.append(f"width {run.key.width}: updates are so small that rounding blurs their exponents")
        return session
    return precise


def _note_whole_batch(run: Run, session: _Session) -> None:
    """Note what some updates on the whole batch do, beside those on the probe."""
    try:
        with user_code("the diagnosis on the whole batch"):
            ready = prepared(run)
            batch = ready.batches.at(0, ready.device)
            whole = _Session(_doubled(ready), _widened(batch)) if session.doubled else _Session(ready, batch)
            whole.begin()
            found = whole.own_updates()
    except Exception as error:  # of what a tiny batch alone can be given
        session.notes.append(f"updates of whole matrices were judged on the probe alone ({type(error).__name__})")
        return
    reshaped = {use.name for use in session.own.uses if use.parameter in session.reshaped}
    for (name, step), scale in found.items():
        if name in reshaped and 0 < scale < math.inf:
            session.own.scales.put(name, step, Quantity.BATCH_UPDATE, scale)


class _Session:
    """One fresh model on one probe, from its initial state."""

    def __init__(self, ready: Prepared, probe: Any) -> None:
        self.model, self.optimizers, self._loss, _, self.device = ready
        self.probe = probe
        self.notes: list[str] = []
        self._gradients: dict[str, Tensor] = {}
        self.degrees: dict[str, float] = {}
        self.first_gradients: dict[str, Tensor] = {}
        """Those at t=0, where they are needed to measure the degrees of the optimizers."""
        self.reshaped: set[str] = set()
        """The parameters whose first update is neither their gradient times a factor nor of signs."""

    def begin(self) -> None:
        """The forward and backward pass of the initial state."""
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in self.model.parameters()):
            with torch.no_grad():  # lazy modules are made by their first call
                self._loss(self.model, to_device(self.probe, self.device))
        tracer = Tracer(self.model, keep_calls=True)
        loss = self._forward(tracer)
        self._backward(loss)
        self.infos = parameter_infos(self.model, self.optimizers, set())
        self.says_something = bool(torch.isfinite(loss)) and any(bool(g.any()) for g in self._gradients.values())
        """Whether there is a loss, and it depends on the parameters: not so where every target is masked."""
        initial = initial_values(dict(self.model.named_parameters()))
        self.own = OwnUpdates(self.model, tracer, initial, frozenset(self._gradients))

    def _forward(self, tracer: Tracer) -> Tensor:
        with tracer:
            loss = self._loss(self.model, to_device(self.probe, self.device))  # a copy: models write into their input
        check_scalar(loss)
        return loss

    def _backward(self, loss: Tensor) -> None:
        self._gradients = {}  # the memory of those before
        backward(loss, self.optimizers)
        # before any optimizer sees them: it may clip or normalise them in place, replace them or let go of them
        self._gradients = gradients_of(dict(self.model.named_parameters()))

    def train(self) -> None:
        """Update until every parameter that has a gradient has moved, noting each step's facts."""
        self.own.note_initial()
        self._note_gradients(0, self.own.tracer)
        settled: dict[str, float] = {}
        if all(map(is_plain, self.optimizers)):
            self.degrees = degrees(self.model, self.optimizers)
            settled = settled_degrees(self.model, self.optimizers, self.degrees)
        else:
            self.first_gradients = {name: gradient.clone() for name, gradient in self._gradients.items()}
        self._take_out_eps_and_decay()
        if settled:
            self.degrees |= settled
            settle(self.optimizers)
            self.notes.append(f"updates of {min(settled)} become others within {LATER} steps: judged after these")
        for step in range(1, MAX_UPDATES + 1):
            for optimizer in self.optimizers:
                optimizer.step()
            if step == 1:
                self.reshaped = self._reshaped()
            self.own.note_updates(step)
            more = step < MAX_UPDATES and self.own.waiting(certain(step, self.optimizers))
            later = Tracer(self.model, gradients=more)
            loss = self._forward(later)  # with gradients, even if they are not asked for: some losses take them
            self.own.note_trace(step, later)
            if not more:
                break
            self._backward(loss)
            self._note_gradients(step, later)

    @property
    def doubled(self) -> bool:
        """Whether it is in double precision."""
        return all(gradient.dtype == torch.float64 for gradient in self._gradients.values())

    def _take_out_eps_and_decay(self) -> None:
        beside = self.doubled and not all(map(is_torchs, self.optimizers))
        lessen_eps(self.model, self.optimizers, self._gradients if beside else None)
        without_decay(self.optimizers)

    def _reshaped(self) -> set[str]:
        gradients, initial = self.first_gradients or self._gradients, self.own.initial
        groups = [group for one in self.optimizers if may_reshape(one) for group in one.param_groups]
        held = {id(p) for group in groups for p in group["params"] if p.dim() > 1}
        return {
            name
            for name, p in self.model.named_parameters()
            if id(p) in held and name in gradients and reshaped(p.detach() - initial[name], gradients[name])
        }

    def own_updates(self) -> dict[tuple[str, int], float]:
        """By use and step, the first and `MAX_UPDATES`: RMS of its own update beside that of its input."""
        self.own.note_initial()
        self._take_out_eps_and_decay()
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if "lr" in group:
                group["lr"] = group["lr"] * RATE  # else updates that are too large take one another back
        for step in range(1, MAX_UPDATES + 1):
            for optimizer in self.optimizers:
                optimizer.step()
            if step in (1, MAX_UPDATES):
                self.own.note_updates(step)
            if step < MAX_UPDATES:
                backward(self._loss(self.model, to_device(self.probe, self.device)), self.optimizers)
        return {
            (name, step): scale / (self.own.scales.get(name, 0, Quantity.INPUT) or math.nan)
            for (name, step, quantity), scale in self.own.scales.all().items()
            if quantity is Quantity.OWN_UPDATE
        }

    def _note_gradients(self, step: int, tracer: Trace) -> None:
        self.own.note_gradients(step, tracer, self._gradients)

    @property
    def held(self) -> set[str]:
        """The parameters that have a gradient and that an optimizer holds."""
        held = optimizer_settings(self.optimizers)
        return {n for n, p in self.model.named_parameters() if id(p) in held and n in self._gradients}


def _doubled(ready: Prepared) -> Prepared:
    ready.model._apply(lambda tensor: tensor.to(double_of(tensor)))
    return ready


def _widened(batch: Any) -> Any:
    """A batch with its tensors in double precision."""

    def wide(leaf: Any) -> Any:
        return leaf.to(double_of(leaf)) if isinstance(leaf, Tensor) else leaf

    return tree_map(wide, batch)
