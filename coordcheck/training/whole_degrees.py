"""The degree of optimizers that are not torch's own, or have hooks: measured on models that are built anew.

What blocks tell of torch's own, these tell of an optimizer that knows its parameters by name, size or number, and of
hooks that change gradients. The gradients are those of the diagnosis: nothing is called but `build` and `step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.common.isolation import user_code
from coordcheck.recording import scales
from coordcheck.recording.updates.degrees import (
    LOSS_FACTOR,
    RATE,
    SMALL,
    STEPS,
    Movement,
    but_for_clipping,
    degree_between,
    movement,
)
from coordcheck.training.trials import Run, prepared

EPS_FACTOR = 1e-6  # on the optimizer's eps, beside which the gradients of a tiny batch are small
BESIDE = (
    1e-3  # and beside the smallest gradient of its group, as far above the roundings of an eigenbasis as may be: an
)
# optimizer that finds it in single precision makes of these, beside a smaller eps, updates as large as the others
ROUNDING = 1e-9  # gradients that are smaller than this beside the largest one are rounding errors
NAMES = "eps", "epsilon"  # of what stands beside a gradient


def whole_degrees(run: Run, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """log(d' / d) / log 10, with d the update of a parameter and d' that under ten times the gradient, by its name.

    Args:
        run: builds the model.
        gradients: of the parameters at t=0; random numbers of their scale stand for those that are zero.

    Returns:
        The degrees that could be measured: none for an optimizer whose step needs more than a gradient.
    """
    given = _without_zeros(gradients)
    double = True  # whose roundings are far below eps, also in an eigenbasis
    try:
        once, found = _between(run, given, LOSS_FACTOR, double)
    except Exception:  # of a model or an optimizer that insists on its own precision
        double = False
        try:
            once, found = _between(run, given, LOSS_FACTOR, double)
        except Exception:  # of an optimizer that needs more than a gradient
            return {}
    # of a gradient so small, updates are rounded in any other precision
    return but_for_clipping(found, once, lambda: _between(run, given, SMALL, double)[1] if double else {})


def _between(
    run: Run, gradients: Mapping[str, Tensor], factor: float, double: bool
) -> tuple[dict[str, Movement], dict[str, float]]:
    """The updates under the gradients, and the degrees from there to the gradients times a factor."""
    with user_code("the degree of the optimizer"):
        once = _moved(run, gradients, 1.0, double)
        other = _moved(run, gradients, factor, double)
    return once, _degrees(once, other, factor)


def lessen_eps(
    model: nn.Module, optimizers: Iterable[Optimizer], gradients: Mapping[str, Tensor] | None = None
) -> None:
    """Make every eps so small that the gradients of a tiny batch are not taken for it.

    Several in one, as Adafactor's are, are left alone: some of them stand beside the parameter.

    Args:
        model: whose parameters they hold.
        optimizers: whose.
        gradients: those that it must be far below, and their roundings far below it; otherwise these do not matter.
    """
    known, named = gradients or {}, dict(model.named_parameters())
    sizes = {id(named[n]): float(scales.rms_of(g)) for n, g in known.items() if n in named and g.numel()}
    told = {p: size for p, size in sizes.items() if ROUNDING * max(sizes.values()) < size < math.inf}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        enough = BESIDE * min((told[id(p)] for p in group["params"] if id(p) in told), default=0.0)
        for name in NAMES:
            value = group.get(name)
            if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
                group[name] = value * max(EPS_FACTOR, min(1.0, enough / float(value)) if value else 0.0)


def without_decay(optimizers: Iterable[Optimizer]) -> None:
    """Take the weight decay out of updates, which are to tell of the gradient: of a small one they are mostly decay."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group.get("weight_decay"), (int, float)):
            group["weight_decay"] = 0.0


def _degrees(once: Mapping[str, Movement], other: Mapping[str, Movement], factor: float) -> dict[str, float]:
    found = {name: degree_between(moved, other[name], factor) for name, moved in once.items() if name in other}
    return {name: degree for name, degree in found.items() if degree is not None}


def _moved(run: Run, gradients: Mapping[str, Tensor], factor: float, double: bool) -> dict[str, Movement]:
    """How far the first steps that move a parameter move it, under its gradient times a factor."""
    model, optimizers = prepared(run)[:2]
    if double:
        model.double()
    without_decay(optimizers)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group.get("lr"), (int, float)):
            group["lr"] = RATE
    lessen_eps(model, optimizers, gradients if double else None)
    parameters = {name: p for name, p in model.named_parameters() if name in gradients}
    for name, p in parameters.items():
        if isinstance(p, nn.parameter.UninitializedParameter):  # of a lazy module, which is not called here
            p.materialize(gradients[name].shape)
            nn.init.normal_(p)
    starts = {name: p.detach().clone() for name, p in parameters.items()}
    moved: dict[str, Movement] = {}
    for _ in range(STEPS):
        for name, p in parameters.items():
            p.grad = gradients[name].to(p) * factor  # which the step may write into
        for optimizer in optimizers:
            optimizer.step()
        for name, p in parameters.items():
            if name not in moved and not torch.equal(p, starts[name]):
                moved[name] = movement(p.detach() - starts[name], gradients[name].to(p) * factor)
        if len(moved) == len(parameters):
            break
    return moved


def _without_zeros(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = [float(scales.rms_of(gradient)) for gradient in gradients.values() if bool(gradient.any())]
    generator = torch.Generator().manual_seed(0)
    size = float(np.median(sizes)) if sizes else 1.0
    return {
        name: gradient
        if bool(gradient.any())
        else (torch.randn(gradient.shape, generator=generator) * size).to(gradient)
        for name, gradient in gradients.items()
    }
