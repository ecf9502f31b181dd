"""The degree of optimizers that are not torch's own, or have hooks: measured on models that are built anew.

What blocks tell of torch's own, these tell of an optimizer that knows its parameters by name, size or number, and of
hooks that change gradients. The gradients are those of the diagnosis: nothing is called but `build` and `step`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

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


def whole_degrees(run: Run, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """log(d' / d) / log 10, with d the update of a parameter and d' that under ten times the gradient, by its name.

    Args:
        run: builds the model.
        gradients: of the parameters at t=0; random numbers of their scale stand for those that are zero.

    Returns:
        The degrees that could be measured: none for an optimizer whose step needs more than a gradient.
    """
    given = _without_zeros(gradients)
    try:
        with user_code("the degree of the optimizer"):
            once = _moved(run, given, 1.0)
            found = _degrees(once, _moved(run, given, LOSS_FACTOR), LOSS_FACTOR)
    except Exception:  # of an optimizer that needs more than a gradient
        return {}
    return but_for_clipping(found, once, lambda: _below(run, given))


def _below(run: Run, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The degrees down to a gradient so small that in any but double precision its updates are rounded."""
    try:
        with user_code("the degree of the optimizer"):
            once, small = (_moved(run, gradients, factor, double=True) for factor in (1.0, SMALL))
    except Exception:  # of a model or an optimizer that insists on its own precision
        return {}
    return _degrees(once, small, SMALL)


def _degrees(once: Mapping[str, Movement], other: Mapping[str, Movement], factor: float) -> dict[str, float]:
    found = {name: degree_between(moved, other[name], factor) for name, moved in once.items() if name in other}
    return {name: degree for name, degree in found.items() if degree is not None}


def _moved(run: Run, gradients: Mapping[str, Tensor], factor: float, double: bool = False) -> dict[str, Movement]:
    """How far the first steps that move a parameter move it, under its gradient times a factor."""
    model, optimizers = prepared(run)[:2]
    if double:
        model.double()
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        numbers = {name for name in ("lr", "weight_decay", "eps") if isinstance(group.get(name), (int, float))}
        known = {"lr": RATE, "weight_decay": 0.0, "eps": EPS_FACTOR * group["eps"] if "eps" in numbers else 0.0}
        group.update({name: known[name] for name in numbers})
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
