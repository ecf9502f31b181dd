"""The first gradient and the first update of each parameter in training: what an optimizer's eps stands beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordcheck.recording.hooks.optimizers import trained_parameters
from coordcheck.recording.hooks.wrappers import without_wrappers
from coordcheck.recording.scales import IN_MEMORY, Array
from coordcheck.recording.updates.gradients import gradients_of
from coordcheck.recording.updates.own_updates import OwnUpdates
from coordcheck.runs.records import ParameterInfo
from coordcheck.runs.words import Quantity

SAMPLED = 2**11  # coordinates of a parameter that are looked at
FEWEST = 16  # of them with a gradient; of fewer, as in a large embedding, others are looked for
HELD = 8  # roundings of a parameter below which it does not hold an update


Places = slice | NDArray[np.int64]


class First(NamedTuple):
    """RMS over coordinates whose gradient is not zero."""

    gradient: float
    update: float | None = None
    """None where the parameter's own precision takes it away."""


class _Coordinates(NamedTuple):
    places: Places
    there: Array
    """Which of them have a gradient."""
    gradient: float
    before: Array


class FirstUpdates:
    """Notes each parameter's first gradient that is not zero, and the update that follows it, on some coordinates."""

    def __init__(self) -> None:
        self._waiting: dict[str, nn.Parameter] | None = None
        self._open: dict[str, _Coordinates] = {}
        self._found: dict[str, First] = {}

    def before(self, model: nn.Module) -> None:
        """Note the gradients that are there; a zero initialisation leaves some without one at first."""
        if self._waiting is None:
            self._waiting = dict(trained_parameters(model).values())
        for name, gradient in gradients_of(self._waiting).items():
            places, values = _some(gradient)
            there = values != 0
            size = _rms(values[there])
            if 0 < size < math.inf:
                before = _values(self._waiting[name], places)[there]
                self._open[name] = _Coordinates(places, there, size, before)

    def after(self) -> None:
        """Note the updates that were made since."""
        for name, (places, there, gradient, before) in self._open.items():
            parameter = (self._waiting or {}).pop(name)
            update = _rms(_values(parameter, places)[there] - before)
            held = _held(update, _rms(before), parameter.dtype)
            self._found[name] = First(gradient, update if held else None)
        self._open = {}

    @property
    def waiting(self) -> bool:
        """Whether some parameter had no gradient yet."""
        return self._waiting is None or bool(self._waiting)

    def told(self, infos: Sequence[ParameterInfo]) -> list[ParameterInfo]:
        """The parameters with what was noted of them."""
        return _with(infos, self._found)


def _some(gradient: Tensor) -> tuple[Places, Array]:
    """Places spread over all rows and columns, and the gradient there; where few have any, the places that have."""
    size = _flat(gradient).numel()
    apart = max(size // SAMPLED, 1)
    while math.gcd(apart, size) > 1:  # else only some columns would be seen
        apart += 1
    places: Places = slice(None, None, apart)
    values = _values(gradient, places)
    if apart > 1 and np.count_nonzero(values) < FEWEST:
        places = _flat(gradient).nonzero().flatten()[:SAMPLED].cpu().numpy()
        values = _values(gradient, places)
    return places, values


def _values(tensor: Tensor, places: Places) -> Array:
    """(coordinates,) in double precision, in memory: a copy."""
    flat = _flat(tensor)
    if flat.device.type in IN_MEMORY and flat.dtype in (torch.float32, torch.float64):  # four times as fast
        return flat.numpy()[places].astype(np.float64)
    return flat[places].to("cpu", torch.float64, copy=True).numpy()


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _rms(values: Array) -> float:
    return math.sqrt(values @ values / values.size) if values.size else 0.0


def _held(update: float, size: float, dtype: torch.dtype) -> bool:
    return HELD * torch.finfo(dtype).eps * size < update < math.inf


def told_in_loop(own: OwnUpdates, steps: int, infos: Sequence[ParameterInfo]) -> list[ParameterInfo]:
    """The parameters with their first gradients and updates in a user's loop, the gradients as backward left them.

    Args:
        own: what was measured there.
        steps: how many updates were looked at.
        infos: the parameters.
    """
    found: dict[str, First] = {}
    for use in own.uses:
        name = without_wrappers(use.parameter)
        if use.block is not None or use.made is not None or name in found:
            continue
        for step in range(steps):
            gradient = own.scales.get(use.name, step, Quantity.WEIGHT_GRADIENT)
            if 0 < gradient < math.inf:
                update = own.scales.get(use.name, step + 1, Quantity.WEIGHT_UPDATE)
                size = own.scales.get(use.name, 0, Quantity.WEIGHT)
                held = _held(update, size, own.initial[use.parameter].dtype)
                found[name] = First(gradient, update if held else None)
                break
    return _with(infos, found)


def _with(infos: Sequence[ParameterInfo], found: Mapping[str, First]) -> list[ParameterInfo]:
    return [info._replace(**found[info.name]._asdict()) if info.name in found else info for info in infos]
