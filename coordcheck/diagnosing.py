"""One diagnosis: a fresh model, a tiny batch, one or two updates, and what each parameter's own update did."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coordcheck.batches import probes, to_device
from coordcheck.calls import leaves
from coordcheck.changes import gradients_of, initial_values
from coordcheck.effects import MAX_UPDATES, Effects
from coordcheck.isolation import user_code
from coordcheck.parts import Trace
from coordcheck.recorder import parameter_infos
from coordcheck.records import RunRecord
from coordcheck.retracing import Retracer
from coordcheck.tracing import Tracer
from coordcheck.trials import Prepared, Run, backward, check_scalar, prepared

EPS_FACTOR = 1e-6  # on the optimizer's eps; its real value counts where the degree in the gradient is measured
LOSS_FACTOR = 10.0  # by which the loss is multiplied to measure the optimizer's degree in the gradient
EPS_SEEN = 0.02  # a degree that is this far below 1 may be Adam's, with an eps as large as the gradient


def diagnose_run(run: Run, record: RunRecord) -> None:
    """Diagnose one run, adding its sites, rows and uses to the record.

    Raises:
        CoordCheckError: what `build`, the batch or the loss gave cannot be checked.
        Exception: whatever the model raises on the probe, and on the whole batch.
    """
    session = _precise(run, _first_that_runs(run))
    degrees = _degrees(run, session.probe) if run.probe is not None and run.probe.degrees else {}
    if not record.parameters:
        record.parameters = session.infos
    session.effects.write(record, degrees)
    record.notes.extend(session.notes)


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
        except Exception:  # of the user's model, which may not accept fewer examples or tokens
            if last:
                raise
        else:
            if last or session.says_something:
                session.train()
                return session
        number += 1


def _precise(run: Run, session: _Session) -> _Session:
    """The same diagnosis in double precision where updates are so small that the parameters' own rounds them."""
    if not session.effects.rounded or session.device.type == "mps":
        return session
    ready = prepared(run)
    try:
        with user_code("the probe"):
            ready.model.double()
            precise = _Session(ready, _widened(session.probe))
            precise.train()
    except Exception:  # of a model that insists on its own precision
        session.notes.append(f"width {run.key.width}: updates are so small that rounding blurs their exponents")
        return session
    return precise


class _Session:
    """One fresh model on one probe, from its initial state."""

    def __init__(self, ready: Prepared, probe: Any, *, factor: float = 1.0, eps: float = EPS_FACTOR) -> None:
        self.model, self.optimizers, self._loss, _, self.device = ready
        self.probe, self._factor = probe, factor
        self.notes: list[str] = []
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in self.model.parameters()):
            with torch.no_grad():  # lazy modules are made by their first call
                self._loss(self.model, to_device(self.probe, self.device))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if isinstance(group.get("eps"), float):  # the probe's small gradients must not be taken for eps
                group["eps"] *= eps
        tracer = Tracer(self.model, keep_calls=True)
        loss = self._forward(tracer)
        self._backward(loss)
        self.infos = parameter_infos(self.model, self.optimizers, set())
        parameters = dict(self.model.named_parameters())
        gradients = gradients_of(parameters)
        self.says_something = bool(torch.isfinite(loss)) and any(bool(g.any()) for g in gradients.values())
        """Whether there is a loss, and it depends on the parameters: not so where every target is masked."""
        self.effects = Effects(self.model, tracer, initial_values(parameters), frozenset(gradients))

    def _forward(self, tracer: AbstractContextManager[Any]) -> Tensor:
        with tracer:
            loss = self._loss(self.model, to_device(self.probe, self.device))  # a copy: models write into their input
        check_scalar(loss)
        return loss

    def _backward(self, loss: Tensor) -> None:
        backward(loss * self._factor, self.optimizers)

    def repeat(self) -> None:
        """Another forward and backward pass."""
        self._backward(self._forward(nullcontext()))

    def update(self) -> None:
        """Take one update."""
        for optimizer in self.optimizers:
            optimizer.step()

    def train(self) -> None:
        """Update until every parameter that has a gradient has moved, noting each step's facts."""
        self.effects.note_initial()
        self._note_gradients(0, self.effects.tracer)
        for step in range(1, MAX_UPDATES + 1):
            self.update()
            self.effects.note_updates(step)
            more = step < MAX_UPDATES and self.effects.waiting(step)
            later = Tracer(self.model) if more else Retracer(self.model, self.effects.tracer)
            loss = self._forward(later)  # with gradients, even if they are not asked for: some losses take them
            self.effects.note_trace(step, later)
            if not more:
                break
            self._backward(loss)
            self._note_gradients(step, later)

    def _note_gradients(self, step: int, tracer: Trace) -> None:
        self.effects.note_gradients(step, tracer, gradients_of(dict(self.model.named_parameters())))


def _degrees(run: Run, probe: Any) -> dict[str, float]:
    """The degree of each parameter's update in its gradient: SGD 1, Adam 0; measured at its first movement.

    An eps as large as the gradient makes it some number between. The exponents are those of updates with a small eps,
    so it stays on the side of 1/2 on which such an update is.
    """
    probe = to_device(probe, prepared(run).device)
    degrees = _measured_degrees(run, probe, eps=1.0)
    if not any(0.5 < degree < 1 - EPS_SEEN for degree in degrees.values()):
        return degrees
    clear = _measured_degrees(run, probe, eps=EPS_FACTOR)
    return {
        name: max(degree, 0.51) if clear.get(name, degree) > 0.5 else min(degree, 0.49)
        for name, degree in degrees.items()
    }


def _measured_degrees(run: Run, probe: Any, eps: float) -> dict[str, float]:
    """The degrees, with the optimizer's eps times a number.

    The loss is multiplied by ten; with d the change of a parameter and g its gradient, the degree is
    log(d' / d) / log(g' / g).
    """
    sessions = []
    for factor in (1.0, LOSS_FACTOR):
        ready = prepared(run)
        if any(tensor.dtype is torch.float64 for _, tensor in leaves(probe) if isinstance(tensor, Tensor)):
            ready.model.double()
        sessions.append(_Session(ready, probe, factor=factor, eps=eps))
    degrees: dict[str, float] = {}
    for step in range(1, MAX_UPDATES + 1):
        for session in sessions:
            session.update()
        once, ten_times = (session.effects.moved() for session in sessions)
        for name, (change, gradient) in once.items():
            ten_change, ten_gradient = ten_times[name]
            if name in degrees or not (change > 0 and ten_change > 0 and gradient > 0 and ten_gradient > 0):
                continue
            ratio = math.log(ten_gradient / gradient)
            degree = math.log(ten_change / change) / ratio if abs(ratio) > math.log(LOSS_FACTOR) / 2 else math.nan
            if math.isfinite(degree):
                degrees[name] = degree
        if len(degrees) == len(once) or step == MAX_UPDATES:
            break
        for session in sessions:
            session.repeat()
    return degrees


def _widened(batch: Any) -> Any:
    """A batch with its floating tensors in double precision."""

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(wide, batch)
