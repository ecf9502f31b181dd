"""One run: build a model at one width, train it for a few steps, record t = 0..steps."""

from __future__ import annotations

import time
import traceback
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import Exited, summary, user_code
from coordcheck.recording.batches import Batches
from coordcheck.recording.hooks.frames import Room
from coordcheck.recording.hooks.optimizers import parameter_infos
from coordcheck.recording.hooks.wrappers import name_plainly
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.layers.probing import Onlooker
from coordcheck.recording.updates.first_updates import FirstUpdates
from coordcheck.runs.records import RunRecord, kept
from coordcheck.runs.words import Outcome
from coordcheck.training import progress
from coordcheck.training.probe import diagnose_run
from coordcheck.training.surroundings import preserved_state
from coordcheck.training.trials import Curve, Prepared, Run, backward, check_scalar, prepared

TRACEBACK_LINES = 6  # of a failed run's traceback kept in its record


def execute(run: Run) -> RunRecord:
    """Train and record one run.

    Whatever is raised ends this run alone and is told in its record, `sys.exit` included; Ctrl-C passes.
    """
    record = RunRecord(run.key, settings=dict(run.settings))
    progress.started(run.key)
    started = time.perf_counter()
    with preserved_state(run.threads, run.state), Room():
        try:
            with user_code("the run"):
                _passes(run, record)
        except Exited as error:
            record.outcome, record.reason = Outcome.FAILED, _tail(error.__cause__ or error)
        except CoordCheckError as error:
            record.outcome, record.reason = Outcome.REFUSED, str(error)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            record.outcome, record.reason = Outcome.OUT_OF_MEMORY, _tail(error)
        except Exception as error:  # one width that cannot be built or run must not stop the others
            exhausted = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
            record.outcome = Outcome.OUT_OF_MEMORY if exhausted else Outcome.FAILED
            record.reason = _tail(error)
    name_plainly(record)
    record.tidy()
    record.seconds = time.perf_counter() - started
    return record


def _passes(run: Run, record: RunRecord) -> None:
    if run.figure:
        _train(run, record)
    if run.curve is not None:
        record.losses = _curve(run, run.curve)
    if run.probe is not None:
        _diagnose(run, record)


def _diagnose(run: Run, record: RunRecord) -> None:
    """Diagnose the run; where it was also trained, a diagnosis that fails costs only itself."""
    try:
        with user_code("the diagnosis"):
            diagnose_run(run, record)
    except Exception as error:
        if not run.figure:
            raise
        cause = error.__cause__ if isinstance(error, Exited) and error.__cause__ else error
        told = summary(cause) if cause is not error else f"{type(error).__name__}: {error}"
        record.notes.append(f"width {run.key.width}: the diagnosis failed: {told}")


def _tail(error: BaseException) -> str:
    """The end of an error's traceback, without its secrets; its last line says what it is."""
    # before it is cut: the last lines of a key would not be known for what they are
    lines = kept("".join(traceback.format_exception(error))).strip().splitlines()[-TRACEBACK_LINES:]
    if isinstance(error, SystemExit):
        lines[-1] = kept(summary(error))
    return "\n".join(lines)


def _train(run: Run, record: RunRecord) -> None:
    model, optimizers, loss_function, batches, device = prepared(run)
    losses: list[Tensor] = []
    firsts = FirstUpdates()
    # of several batches the first one is looked at, besides, at every step: only on one is a change one of training
    several = len(batches.values) > 1
    with ActivationRecorder(model, fixed_batch=True, same_noise=several) as recorder:
        onlooker = Onlooker(model, recorder)
        for step in range(run.steps + 1):
            batch = batches.at(step, device)
            with nullcontext() if several else recorder.window(step):
                loss = loss_function(model, batch)
            check_scalar(loss)
            losses.append(loss.detach().reshape(()))
            if step < run.steps:  # the last forward is only looked at
                backward(loss, optimizers)
            if several:  # when lazy modules are made, and before the update
                with recorder.window(step):
                    onlooker.look(lambda: loss_function(model, batches.at(0, device)))
            if step == 0:
                record.parameters = parameter_infos(model, optimizers, recorder.never_called())
            if step < run.steps:
                firsts.before(model)
                for optimizer in optimizers:
                    optimizer.step()
                firsts.after()
            progress.stepped(step, run.steps)
    record.losses = [value if np.isfinite(value) else None for value in torch.stack(losses).tolist()]
    record.parameters = firsts.told(record.parameters)
    record.sites, record.rows = list(recorder.sites.values()), recorder.rows
    record.notes.extend(recorder.notes())


def _curve(run: Run, curve: Curve) -> list[float | None]:
    """The losses at t = 0..steps of a plain training; from the first one that is no number on, None."""
    made = prepared(run)
    losses: list[float | None] = []
    for step in range(run.steps):
        loss = made.loss(made.model, made.batches.at(step, made.device))
        check_scalar(loss)
        losses.append(_number(loss))
        if losses[-1] is None:  # it diverged: nothing comes back from there, and time is short
            return losses + [None] * (run.steps - step)
        backward(loss, made.optimizers)
        for optimizer in made.optimizers:
            optimizer.step()
        progress.stepped(step + 1, run.steps)
    return [*losses, _final_loss(made, run.steps, curve.held_out)]


def _final_loss(made: Prepared, step: int, held_out: Batches | None) -> float | None:
    """The mean loss over the held-out batches, in evaluation mode; without any, that of the batch of this step."""
    if held_out is None:
        batches = [made.batches.at(step, made.device)]
    else:
        batches = [held_out.at(index, made.device) for index in range(len(held_out.values))]
        made.model.eval()
    with torch.no_grad():
        return _number(torch.stack([made.loss(made.model, batch).reshape(()) for batch in batches]).mean())


def _number(loss: Tensor) -> float | None:
    value = float(loss.detach())
    return value if np.isfinite(value) else None
