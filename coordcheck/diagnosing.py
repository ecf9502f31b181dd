"""One diagnosis: a fresh model, a tiny batch, one or two updates, and what each parameter's own update did.

Everything here is local to one parameter: its scale, its gradient, its update, and that update's effect on the input
that its operation saw at t=0. Faults upstream or downstream do not change these, so one fault shows in one place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coordcheck import scales
from coordcheck.batches import probes, to_device
from coordcheck.calls import leaves
from coordcheck.operations import GROUPED
from coordcheck.parts import Part, Snapshot, again, parts_of
from coordcheck.recorder import parameter_infos
from coordcheck.records import FORWARD, Kind, Quantity, Row, RunRecord, Site, Status, Use, status_of
from coordcheck.replays import Block, FunctionReplay
from coordcheck.sites import ROOT
from coordcheck.tracing import Tracer
from coordcheck.trials import Prepared, Run, backward, check_scalar, prepared
from coordcheck.uses import AttentionCall, Node, UseCall, first_tensor

MAX_UPDATES = 4  # until every parameter has moved: zero initialisations and warm-ups need more than one
EPS_FACTOR = 1e-6  # on the optimizer's eps; its real value counts where the degree in the gradient is measured
ROUNDED = 100  # an update of fewer roundings than this beside its parameter is done again in double precision
EXACT = torch.finfo(torch.float64).eps
LOSS_FACTOR = 10.0  # by which the loss is multiplied to measure the optimizer's degree in the gradient
EPS_SEEN = 0.02  # a degree that is this far below 1 may be Adam's, with an eps as large as the gradient
POWER_STEPS = 3  # of the power iteration; updates on a tiny batch have few large singular values


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
    session.write(record, degrees)


def _first_that_runs(run: Run) -> _Session:
    """The diagnosis on the smallest probe that the model accepts."""
    given = run.probe.batch if run.probe is not None else None
    number = 0
    while True:
        ready = prepared(run)
        batch = ready.batches.at(0, ready.device)
        found = [given] if given is not None else probes(batch)
        try:
            session = _Session(ready, to_device(found[number], ready.device))
        except Exception:  # of the user's model, which may not accept fewer examples or tokens
            if number + 1 >= len(found):
                raise
            number += 1
            continue
        session.train()
        return session


def _precise(run: Run, session: _Session) -> _Session:
    """The same diagnosis in double precision where updates are so small that the parameters' own rounds them."""
    if not session.rounded or session.device.type == "mps":
        return session
    ready = prepared(run)
    try:
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
        self._facts: dict[tuple[str, int, Quantity], float] = {}
        self._counts: dict[str, int] = {}
        self._functions: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.tracer, loss = self._forward(keep_calls=True)
        self._backward(loss)
        self.infos = parameter_infos(self.model, self.optimizers, set())
        self.initial = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.trained = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        named = frozenset(self._gradients())
        self.parts = parts_of(Snapshot(self.model, self.tracer, self.initial, self.trained, named))

    def _forward(self, keep_calls: bool = False) -> tuple[Tracer, Tensor]:
        tracer = Tracer(self.model, keep_calls=keep_calls)
        with tracer:
            loss = self._loss(self.model, to_device(self.probe, self.device))  # a copy: models write into their input
        check_scalar(loss)
        return tracer, loss

    def _backward(self, loss: Tensor) -> None:
        backward(loss * self._factor, self.optimizers)

    def repeat(self) -> None:
        """Another forward and backward pass."""
        self._backward(self._forward()[1])

    def _gradients(self) -> dict[str, Tensor]:
        return {
            name: parameter.grad.to_dense() if parameter.grad.layout is not torch.strided else parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and parameter.grad is not None
        }

    def update(self) -> None:
        """Take one update."""
        for optimizer in self.optimizers:
            optimizer.step()

    def moved(self) -> dict[str, tuple[float, float]]:
        """Per parameter the RMS of its change so far, and of the gradient of the last backward pass."""
        moved, gradients = {}, self._gradients()
        for name, parameter in self.model.named_parameters():
            if name in self.trained:
                gradient = gradients.get(name)
                change = parameter.detach() - self.initial[name]
                moved[name] = _rms(change), math.nan if gradient is None else _rms(gradient)
        return moved

    @property
    def rounded(self) -> bool:
        """Whether some parameter moved so little that its own precision rounds the update."""
        for part in self.parts:
            weight = self._facts.get((part.name, 0, Quantity.WEIGHT), 0.0)
            first = next((u for t in range(1, MAX_UPDATES + 1) if (u := self._update(part, t)) > 0), math.inf)
            precision = torch.finfo(self.initial[part.parameter].dtype).eps
            if precision > EXACT and first < ROUNDED * precision * weight:
                return True
        return False

    def _moved(self, part: Part, steps: int) -> bool:
        """Whether one of the first updates moved a parameter by its gradient; a decay moves it without one."""
        return any(
            self._update(part, step) > 0 and self._facts.get((part.name, step - 1, Quantity.WEIGHT_GRADIENT), 0.0) > 0
            for step in range(1, steps + 1)
        )

    def _update(self, part: Part, step: int) -> float:
        return self._facts.get((part.name, step, Quantity.WEIGHT_UPDATE), 0.0)

    def train(self) -> None:
        """Update until every parameter that has a gradient has moved, noting each step's facts."""
        self._note_initial()
        for step in range(1, MAX_UPDATES + 1):
            self.update()
            self._note_updates(step)
            waiting = [part for part in self.parts if part.trained and not part.hidden and not self._moved(part, step)]
            more = step < MAX_UPDATES and bool(waiting)
            later, loss = self._forward()  # with gradients, even if they are not asked for: some losses take them
            if more:
                self._backward(loss)
            self._note_trace(step, later, more)
            if not more:
                break

    def _note(self, name: str, step: int, quantity: Quantity, value: float) -> None:
        self._facts[name, step, quantity] = value

    def _note_initial(self) -> None:
        gradients = self._gradients()
        for part in self.parts:
            self._note(part.name, 0, Quantity.WEIGHT, _rms(part.rows(self.initial[part.parameter])))
            self._note_gradients(part, 0, part.use, gradients)
            if part.replay is not None and not part.hidden:
                self._note(part.name, 0, Quantity.INPUT, part.replay.input_scale)
                self._measure(part, 0, Quantity.OUTPUT, lambda part=part: part.replay.output())
        self._note_attentions(0, self.tracer)
        self._note_functions()

    def _note_functions(self) -> None:
        """Modules without parameters: the scale of what they take and of what they give."""
        for path, call in self.tracer.calls.items():
            module = self.model if path == ROOT else self.model.get_submodule(path)
            if call.output is None or any(True for _ in module.parameters()):
                continue
            try:
                taken, given = first_tensor((call.args, call.kwargs)), first_tensor(call.output)
            except ValueError:  # no floating tensor on one side
                continue
            name = f"{path}/{FORWARD}"
            self._functions[name] = path, tuple(given.shape)
            self._note(name, 0, Quantity.INPUT, _rms(taken))
            self._note(name, 0, Quantity.OUTPUT, _rms(given))

    def _note_gradients(self, part: Part, step: int, use: UseCall | None, gradients: Mapping[str, Tensor]) -> None:
        """dL/dp over its coordinates that are not zero, and dL/dh."""
        gradient = gradients.get(part.parameter)
        if gradient is not None:
            rows = part.rows(gradient)
            count = int(torch.count_nonzero(rows))
            self._counts[part.name] = max(count, self._counts.get(part.name, 0))
            self._note(part.name, step, Quantity.WEIGHT_GRADIENT, _norm(rows) / math.sqrt(count) if count else 0.0)
        if use is not None and use.gradient is not None:
            try:
                delta = _rms(part.channels(use.gradient))
            except (RuntimeError, IndexError):  # channels that are not the last axis
                delta = _rms(use.gradient)
            self._note(part.name, step, Quantity.GRADIENT, delta / abs(use.downstream) if use.downstream else math.nan)

    def _note_updates(self, step: int) -> None:
        current = dict(self.model.named_parameters())
        for part in self.parts:
            if not part.trained:
                continue
            now, before = current[part.parameter], self.initial[part.parameter]
            change = part.rows(now.detach() - before)
            count = max(self._counts.get(part.name) or change.numel(), 1)
            self._note(part.name, step, Quantity.WEIGHT_UPDATE, _norm(change) / math.sqrt(count))
            matrix = _as_matrix(part, change)
            if matrix is not None:
                self._note(part.name, step, Quantity.WEIGHT_UPDATE_NORM, spectral_norm(matrix))
            if part.replay is not None and not part.hidden:
                self._measure(part, step, Quantity.OWN_UPDATE, lambda p=part, now=now: p.replay.own_update(now))

    def _note_trace(self, step: int, later: Tracer, updated: bool) -> None:
        gradients = self._gradients() if updated else {}
        for part in self.parts:
            use = again(part, later)
            if updated:
                self._note_gradients(part, step, use, gradients)
            if use is not None and isinstance(part.replay, FunctionReplay) and _comparable(part, use):
                self._measure(part, step, Quantity.INHERITED, lambda p=part, use=use: p.replay.inherited(use))
        self._note_attentions(step, later)

    def _note_attentions(self, step: int, tracer: Tracer) -> None:
        for name, attention in _named(tracer).items():
            pairs = {Quantity.LOGITS: (attention.logits, 1.0)}
            pairs |= {Quantity.QUERY: attention.query, Quantity.KEY: attention.key}  # type: ignore[dict-item]  # set when made
            for quantity, (tensor, factor) in pairs.items():
                if tensor is not None:
                    self._note(name, step, quantity, _rms(tensor) / abs(factor) if factor else math.nan)

    def _measure(self, part: Part, step: int, quantity: Quantity, replay: Any) -> None:
        if part.block is not None and part.block.stacked:  # which part of the output is its own is not known
            return
        try:
            with torch.no_grad():
                value = _rms(part.channels(replay()))
        except Exception as error:  # of the user's module or an operation that cannot be called again
            self.tracer.skipped[f"{quantity.value} of {part.name} ({type(error).__name__})"] += 1
            return
        self._note(part.name, step, quantity, value)

    def write(self, record: RunRecord, degrees: Mapping[str, float]) -> None:
        """Add sites, rows and uses to the record."""
        attentions = _named(self.tracer)
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
        for (name, step, quantity), scale in self._facts.items():
            if name in index:
                status = status_of(scale)
                record.rows.append(Row(index[name], step, quantity, None if status.not_finite else scale, status))
        nodes: dict[Node, int] = {
            part.use: index[part.name] for part in reversed(self.parts) if part.use and not part.block
        }
        nodes |= {attention: index[name] for name, attention in attentions.items()}
        for part in self.parts:
            record.uses.append(self._use(part, index[part.name], nodes, degrees.get(part.parameter)))
        for name, attention in attentions.items():
            feeds = tuple(sorted(nodes[node] for node in attention.feeds if node in nodes))
            judged = attention in self.tracer.attentions
            what = attention.layer, attention.operation, attention.head_size, 1, attention.scale, None, True, feeds
            record.uses.append(Use(index[name], "", *what, "" if judged else NO_SOFTMAX))
        for name, (path, _) in self._functions.items():
            record.uses.append(Use(index[name], "", path, FORWARD, 1, 1, 1.0, None, False, ()))
        record.outside = {path: factor for path, factor in self.tracer.outside.items() if math.isfinite(factor)}
        record.notes.extend(self.notes)
        skipped = [f"{what} was not measured" for what in self.tracer.skipped if " of " in what]
        record.notes.extend(skipped)

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
            feeds = tuple(sorted({nodes[node] for node in part.use.feeds if node in nodes}))
            exact = part.use.linear
            fan_in, fan_out = part.use.fans or (1, math.prod(shape) or 1)
        fan_out = part.block.size if isinstance(part.block, Block) and not part.block.stacked else fan_out
        return Use(
            *(site, part.parameter, layer, operation, max(fan_in, 1), max(fan_out, 1), multiplier),
            *(degree, exact, feeds, part.hidden),
        )


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
        once, ten_times = (session.moved() for session in sessions)
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


NO_SOFTMAX = "it multiplies two activations over a growing axis, and no softmax follows: its scale is not judged"
SHORT = {"scaled_dot_product_attention": "sdpa"}


def _comparable(part: Part, later: UseCall) -> bool:
    """Whether a later call saw the same examples: experts see other tokens once the routing changes."""
    use = part.use
    position = None if use is None else use.input_position
    if part.hidden or not part.trained or use is None or position is None:
        return part.trained and not part.hidden
    same_groups = use.operation not in GROUPED or all(
        torch.equal(before, after)
        for before, after in zip(use.leaves, later.leaves, strict=True)
        if isinstance(before, Tensor) and not before.is_floating_point()
    )
    return same_groups and bool(use.leaves[position].shape == later.leaves[position].shape)


def _named(tracer: Tracer) -> dict[str, AttentionCall]:
    """Products of two activations by site name: `module path/operation`, with `#k` from the second in one module on."""
    named: dict[str, AttentionCall] = {}
    for product in [*tracer.attentions, *(p for p in tracer.products if p not in tracer.attentions)]:
        base = f"{product.layer}/{SHORT.get(product.operation, product.operation)}"
        count = sum(name.partition("#")[0] == base for name in named)
        named[base if not count else f"{base}#{count + 1}"] = product
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


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value, by power iteration.

    >>> round(spectral_norm(torch.diag(torch.tensor([3.0, 1.0]))), 3)
    3.0
    """
    matrix = matrix.float()
    vector = torch.ones(matrix.shape[1], device=matrix.device) + torch.arange(matrix.shape[1], device=matrix.device) % 7
    for _ in range(POWER_STEPS):
        product = matrix @ vector
        vector = matrix.T @ product
        size = torch.linalg.vector_norm(vector)
        if not size > 0:
            return 0.0
        vector = vector / size
    return float(torch.linalg.vector_norm(matrix @ vector))


def _widened(batch: Any) -> Any:
    """A batch with its floating tensors in double precision."""

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(wide, batch)


def _rms(tensor: Tensor) -> float:
    try:
        return float(scales.rms(scales.measurable(tensor)))
    except scales.NotMeasurable as reason:
        return 1.0 if reason.status is Status.INTEGER else math.nan


def _norm(tensor: Tensor) -> float:
    try:
        return float(torch.linalg.vector_norm(scales.measurable(tensor)))
    except scales.NotMeasurable:
        return math.nan
