"""What a run trains: the factory's model and optimizer on the user's data, with every global left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.batches import Batches, cached_batches, describe, of_seed
from coordcheck.recording.distributed.shards import spread_over
from coordcheck.recording.hooks.randomness import seed_everything as seed_everything
from coordcheck.recording.hooks.wrappers import undistributed
from coordcheck.runs.files import versions
from coordcheck.runs.records import RunKey
from coordcheck.training.fingerprints.fingerprint import FORMAT, fingerprint, settings_of
from coordcheck.training.losses import Loss, as_loss

Build = Callable[[int], Any]


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


@dataclass(frozen=True)
class Probe:
    """The diagnosis pass of one run."""

    batch: Any = None
    """The tiny batch; None takes a few examples or tokens of the run's own."""
    degrees: bool = False
    """Whether this run measures the degree of an optimizer of the user's own, by further models."""


@dataclass(frozen=True)
class Curve:
    """A plain training, without any recording: the loss before every update, and after the last one."""

    held_out: Batches | None = None
    """What the loss after the last update is measured on; None takes the batch that would come next."""


class Prepared(NamedTuple):
    """A freshly built model with everything needed to train it."""

    model: nn.Module
    optimizers: list[Optimizer]
    loss: Loss
    batches: Batches
    device: torch.device


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
    figure: bool = True
    """Whether to train on the batch for t = 0..steps and record the classical quantities."""
    probe: Probe | None = None
    """How to diagnose; None leaves the diagnosis out."""
    curve: Curve | None = None
    """How to train for the losses alone; None leaves that out."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The global state that it starts from, in whichever process: what `numeric_state` gave for the check."""


def run_settings(batch: Any, loss: Any, *, steps: int, device: str | None, threads: int) -> dict[str, str]:
    """What changes the numbers of all runs of a check, `build` and the state of the process apart."""
    described = settings_of(batch=batch) if callable(batch) else {"batch": fingerprint(batch)}
    return {
        **described,
        **settings_of(loss=loss),
        "steps": str(steps),
        "device": device or "as built",
        "threads": str(threads),
        "dtype": str(torch.get_default_dtype()),
        "torch": versions()["torch"],
        "fingerprints": FORMAT,
    }


def prepared(run: Run) -> Prepared:
    """Seed, build, and find the batches: the same model and data every time it is called.

    Returns:
        Model, optimizers, loss and batches.

    Raises:
        CoordCheckError: what the factory returned cannot be checked, or there is no batch.
    """
    batches = run.batches
    if callable(batches):
        seed_everything(run.key.seed)
        batches = cached_batches(of_seed(batches, run.key.seed), run.steps)
    seed_everything(run.key.seed)
    trial, optimizers = built(run.build, run.key)
    if trial.batch is not None:
        batches = cached_batches(trial.batch, run.steps)
    if not isinstance(batches, Batches):
        raise CoordCheckError("there is no batch: pass batch=, or let build return a Trial with one.")
    if run.device is not None:
        trial.model.to(run.device)
    device = next((p.device for p in trial.model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise CoordCheckError(
            f"the model of {run.key.label!r} is on the meta device, where tensors have shapes and no values. Build it "
            'without torch.device("meta"), or call model.to_empty(device="cpu") and initialise its parameters.'
        )
    return Prepared(trial.model, optimizers, as_loss(trial.loss) if trial.loss else run.loss, batches, device)


def backward(loss: Tensor, optimizers: Sequence[Optimizer]) -> None:
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


def built(build: Build, key: RunKey) -> tuple[Trial, list[Optimizer]]:
    """Call the factory and make sure of what it returned."""
    made = build(key.width)
    where = f"build({key.width}) of {key.label!r}"
    if isinstance(made, tuple) and len(made) == 2:
        made = Trial(*made)
    if not isinstance(made, Trial):
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise CoordCheckError(f"{where} returned {what}; it must return (model, optimizer) or a Trial.")
    if not isinstance(made.model, nn.Module):
        raise CoordCheckError(
            f"{where} returned {type(made.model).__name__} as the model; it must be a torch.nn.Module."
        )
    made = replace(made, model=undistributed(made.model))
    if spread_over(made.model):
        raise CoordCheckError(
            f"{where}: the parameters are DTensors, spread over ranks. Return the plain model, which is checked on one "
            "process, or use a Recorder in the training of the one that is spread."
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
    if not trainable:
        raise CoordCheckError(f"{where}: no parameter of the model requires a gradient, so nothing would be trained.")
    if not held & trainable:
        raise CoordCheckError(
            f"{where}: the optimizer holds none of the model's {len(trainable)} trainable parameters, so nothing would "
            "be trained. Make it from the parameters of the model that is returned."
        )
    return made, optimizers


def check_scalar(loss: object) -> None:
    """Refuse a loss that is not one number.

    Raises:
        CoordCheckError: it is not a tensor with one element.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise CoordCheckError(
            f"the loss must be a tensor with one element, got {describe(loss)}. "
            "loss= is called as loss(model, batch) and must reduce over the batch."
        )
