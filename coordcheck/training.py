"""One run: build a model at one width, train it for a few steps, record t = 0..steps."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.batches import Batches, cached_batches, describe
from coordcheck.errors import CoordCheckError
from coordcheck.losses import Loss, as_loss
from coordcheck.recorder import parameter_infos
from coordcheck.records import Outcome, RunKey, RunRecord
from coordcheck.sites import SiteRecorder

Build = Callable[[int], Any]

TRACEBACK_LINES = 6  # of a failed run's traceback kept in its record


@dataclass
class Trial:
    """What `build(width)` may return instead of `(model, optimizer)`.

    `batch` and `loss` override the check's own; give them when the batch must depend on the width.
    `optimizer` may be several optimizers that step together.
    """

    model: nn.Module
    optimizer: Optimizer | Sequence[Optimizer]
    batch: Any = None
    loss: Loss | None = None


@contextmanager
def preserved_state(threads: int | None = None) -> Iterator[None]:
    """Leave every global a run may touch as it was found: random states, grad mode, threads, defaults."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    found_threads, dtype, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            if threads is not None and threads != found_threads:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(found_threads)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random; widths of one seed share it, in whichever order they run."""
    if _has_accelerator():
        torch.manual_seed(seed)
    else:  # the same for the CPU, without queueing a call (and a stack trace) for devices that are not there
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@lru_cache(maxsize=1)
def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


@dataclass(frozen=True)
class Run:
    """Everything that one run needs; picklable by cloudpickle when `build`, `batches` and `loss` are."""

    key: RunKey
    build: Build
    batches: Batches | Callable[[int], Any] | None
    """The batches, or a function of the seed that gives a batch or several."""
    loss: Loss
    steps: int
    device: str | None
    threads: int
    settings: Mapping[str, str]


def execute(run: Run) -> RunRecord:
    """Train and record one run.

    Anything that goes wrong ends this run alone and is told in its record.
    """
    record = RunRecord(run.key, settings=dict(run.settings))
    started = time.perf_counter()
    with preserved_state(run.threads):
        try:
            _train(run, record)
        except CoordCheckError as error:
            record.outcome, record.reason = Outcome.REFUSED, str(error)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            record.outcome, record.reason = Outcome.OUT_OF_MEMORY, _tail(error)
        except Exception as error:  # one width that cannot be built or run must not stop the others
            exhausted = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
            record.outcome = Outcome.OUT_OF_MEMORY if exhausted else Outcome.FAILED
            record.reason = _tail(error)
    record.seconds = time.perf_counter() - started
    return record


def _tail(error: BaseException) -> str:
    return "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-TRACEBACK_LINES:])


def _train(run: Run, record: RunRecord) -> None:
    batches = run.batches
    if callable(batches):
        seed_everything(run.key.seed)
        batches = cached_batches(batches(run.key.seed), run.steps)
    seed_everything(run.key.seed)
    trial, optimizers = _built(run)
    model, loss_function = trial.model, as_loss(trial.loss) if trial.loss else run.loss
    if trial.batch is not None:
        batches = cached_batches(trial.batch, run.steps)
    if not isinstance(batches, Batches):
        raise CoordCheckError("there is no batch: pass batch=, or let build return a Trial with one.")
    if run.device is not None:
        model.to(run.device)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    losses: list[Tensor] = []
    with SiteRecorder(model, fixed_batch=len(batches.values) == 1) as recorder:
        for step in range(run.steps + 1):
            batch = batches.at(step, device)
            with recorder.window(step):
                loss = loss_function(model, batch)
            _check_scalar(loss)
            losses.append(loss.detach().reshape(()))
            if step < run.steps:  # the last forward is only looked at
                _backward(loss, optimizers)
            if step == 0:
                record.parameters = parameter_infos(model, optimizers, recorder.never_called())
            if step < run.steps:
                for optimizer in optimizers:
                    optimizer.step()
    record.losses = [value if np.isfinite(value) else None for value in torch.stack(losses).tolist()]
    record.sites, record.rows = list(recorder.sites.values()), recorder.rows
    record.notes.extend(recorder.notes())


def _backward(loss: Tensor, optimizers: Sequence[Optimizer]) -> None:
    """The gradients of one step, which must reach a parameter that is trained."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    if not loss.requires_grad:
        raise CoordCheckError(
            "the loss does not depend on any trainable parameter (it has no gradient). Check that loss= uses the "
            "model it is given and does not detach its output."
        )
    loss.backward()
    if not any(p.grad is not None for o in optimizers for group in o.param_groups for p in group["params"]):
        raise CoordCheckError(
            "the loss does not depend on any parameter that the optimizer holds: none received a gradient."
        )


def _built(run: Run) -> tuple[Trial, list[Optimizer]]:
    """Call the factory and make sure of what it returned."""
    made = run.build(run.key.width)
    where = f"build({run.key.width}) of {run.key.label!r}"
    if isinstance(made, tuple) and len(made) == 2:
        made = Trial(*made)
    if not isinstance(made, Trial):
        raise CoordCheckError(f"{where} returned {type(made).__name__}; it must return (model, optimizer) or a Trial.")
    if not isinstance(made.model, nn.Module):
        raise CoordCheckError(
            f"{where} returned {type(made.model).__name__} as the model; it must be a torch.nn.Module."
        )
    several = isinstance(made.optimizer, (tuple, list))
    optimizers: list[Any] = list(made.optimizer) if several else [made.optimizer]  # type: ignore[arg-type]  # narrowed above
    for optimizer in optimizers:
        if not (hasattr(optimizer, "step") and hasattr(optimizer, "param_groups")):
            raise CoordCheckError(
                f"{where} returned {type(optimizer).__name__} as the optimizer; it must be a torch.optim.Optimizer."
            )
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in made.model.parameters() if p.requires_grad}
    if not held & trainable:
        raise CoordCheckError(
            f"{where}: the optimizer holds none of the model's {len(trainable)} trainable parameters, so nothing would "
            "be trained. Make it from the parameters of the model that is returned."
        )
    return made, optimizers


def _check_scalar(loss: object) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise CoordCheckError(
            f"the loss must be a tensor with one element, got {describe(loss)}. "
            "loss= is called as loss(model, batch) and must reduce over the batch."
        )
