"""One diagnosis: a fresh model, a tiny batch, one or two updates, and what each parameter's own update did."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import probes, to_device
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.recorder import parameter_infos
from coordcheck.recording.updates.changes import gradients_of, initial_values
from coordcheck.recording.updates.degrees import (
    EPS_SEEN,
    LOSS_FACTOR,
    SMALL,
    Movement,
    but_for_clipping,
    degree_between,
    movement,
)
from coordcheck.recording.updates.effects import MAX_UPDATES, Effects
from coordcheck.recording.updates.parts import Trace
from coordcheck.runs.records import BETWEEN, RunRecord, is_between
from coordcheck.training.trials import Prepared, Run, backward, check_scalar, prepared

EPS_FACTOR = 1e-6  # on the optimizer's eps; its real value counts where the degree in the gradient is measured


def diagnose_run(run: Run, record: RunRecord) -> None:
    """Diagnose one run, adding its sites, rows and uses to the record.

    Raises:
        CoordCheckError: what `build`, the batch or the loss gave cannot be checked.
        Exception: whatever the model raises on the probe, and on the whole batch.
    """
    session = _precise(run, _first_that_runs(run))
    degrees = _degrees(run, session) if run.probe is not None and run.probe.degrees else {}
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
    try:
        with user_code("the probe"):
            precise = _Session(_doubled(prepared(run)), _widened(session.probe))
            precise.train()
    except Exception:  # of a model that insists on its own precision
        session.notes.append(f"width {run.key.width}: updates are so small that rounding blurs their exponents")
        return session
    return precise


class _Session:
    """One fresh model on one probe, from its initial state."""

    def __init__(
        self, ready: Prepared, probe: Any, *, factor: float = 1.0, eps: float = EPS_FACTOR, kept: bool = False
    ) -> None:
        self.model, self.optimizers, self._loss, _, self.device = ready
        self.probe, self._factor, self._kept = probe, factor, kept
        self._gradients: dict[str, Tensor] = {}
        self.double = all(p.dtype is torch.float64 for p in self.model.parameters() if p.is_floating_point())
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
        self.says_something = bool(torch.isfinite(loss)) and any(bool(g.any()) for g in self._gradients.values())
        """Whether there is a loss, and it depends on the parameters: not so where every target is masked."""
        self.effects = Effects(self.model, tracer, initial_values(parameters), frozenset(self._gradients))

    def _forward(self, tracer: AbstractContextManager[Any]) -> Tensor:
        with tracer:
            loss = self._loss(self.model, to_device(self.probe, self.device))  # a copy: models write into their input
        check_scalar(loss)
        return loss

    def _backward(self, loss: Tensor) -> None:
        self._gradients = {}  # the memory of those before
        backward(loss * self._factor, self.optimizers)
        # before any optimizer sees them: it may clip or normalise them in place, replace them or let go of them
        self._gradients = gradients_of(dict(self.model.named_parameters()))
        if self._kept:
            self._gradients = {name: gradient.clone() for name, gradient in self._gradients.items()}

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
            later = Tracer(self.model, gradients=more)
            loss = self._forward(later)  # with gradients, even if they are not asked for: some losses take them
            self.effects.note_trace(step, later)
            if not more:
                break
            self._backward(loss)
            self._note_gradients(step, later)

    def _note_gradients(self, step: int, tracer: Trace) -> None:
        self.effects.note_gradients(step, tracer, self._gradients)

    def moved(self) -> dict[str, Movement]:
        """What the updates so far did to each parameter that is trained, and its gradient of the last backward pass."""
        found = {}
        for name, parameter in self.model.named_parameters():
            gradient = self._gradients.get(name)
            if gradient is not None and gradient.numel():
                found[name] = movement(parameter.detach() - self.effects.initial[name], gradient)
        return found


def _degrees(run: Run, session: _Session) -> dict[str, float]:
    """The degree of each parameter's update in its gradient: SGD 1, Adam 0; measured at its first movement.

    An eps as large as the gradient makes it some number between. The exponents are those of updates with a small eps,
    so it stays on the side on which such an update is. Where it is between the two for another reason, as that of a
    gradient some of whose coordinates are clipped, it stays there, and decides nothing.
    """
    degrees = _measured_degrees(run, session)
    if not any(BETWEEN[0] < degree < 1 - EPS_SEEN for degree in degrees.values()):
        return degrees
    clear = _measured_degrees(run, session, eps=EPS_FACTOR)
    return {name: _sided(degree, clear.get(name, degree)) for name, degree in degrees.items()}


def _sided(degree: float, clear: float) -> float:
    """A degree on the side of the one that is measured with a small eps."""
    if is_between(clear):
        return clear
    return max(degree, BETWEEN[1]) if clear > 0.5 else min(degree, BETWEEN[0])


def _measured_degrees(run: Run, session: _Session, eps: float = 1.0) -> dict[str, float]:
    """The degrees from the loss to ten times the loss, with the optimizer's eps times a number."""
    found, movements = _compared(run, session, LOSS_FACTOR, eps)
    return but_for_clipping(found, movements, lambda: _degrees_below(run, session))


def _degrees_below(run: Run, session: _Session) -> dict[str, float]:
    """The degrees down to a gradient so small that in any but double precision its updates are rounded."""
    try:
        with user_code("the probe"):
            return _compared(run, session, SMALL, EPS_FACTOR, double=True)[0]
    except Exception:  # of a model that insists on its own precision
        return {}


def _compared(
    run: Run, session: _Session, factor: float, eps: float, double: bool = False
) -> tuple[dict[str, float], dict[str, Movement]]:
    """The degrees from the loss to a multiple of it, and the movements under the loss itself.

    With d the change of a parameter and g its gradient, the degree is log(d' / d) / log(g' / g).
    """
    sessions = []
    for by in (1.0, factor):
        ready, probe = prepared(run), to_device(session.probe, session.device)
        if double or session.double:
            ready, probe = _doubled(ready), _widened(probe)
        sessions.append(_Session(ready, probe, factor=by, eps=eps, kept=True))
    degrees: dict[str, float] = {}
    movements: dict[str, Movement] = {}
    for step in range(1, MAX_UPDATES + 1):
        for each in sessions:
            each.update()
        once, other = (each.moved() for each in sessions)
        for name, moved in once.items():
            degree = degree_between(moved, other[name], factor) if name not in degrees and name in other else None
            if degree is not None:
                degrees[name], movements[name] = degree, moved
        if degrees.keys() >= sessions[0].effects.trained or step == MAX_UPDATES:
            break
        for each in sessions:
            each.repeat()
    return degrees, movements


def _doubled(ready: Prepared) -> Prepared:
    ready.model.double()
    return ready


def _widened(batch: Any) -> Any:
    """A batch with its floating tensors in double precision."""

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(wide, batch)
