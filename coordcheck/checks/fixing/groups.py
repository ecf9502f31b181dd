"""The parameter groups of an optimizer, split so that some parameters have another learning rate, decay or eps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from coordcheck.common.errors import CoordCheckError

PARALLEL = ("params", "param_names")  # lists of a group with one item per parameter


def split_groups(
    optimizer: Optimizer, rates: Mapping[int, float], eps: Mapping[int, float], m: float, *, constant_decay: bool
) -> None:
    """Multiply learning rates, and eps, by powers of m: groups whose parameters differ are split where they stand.

    Args:
        optimizer: its state, its defaults and all other options of its groups stay as they are.
        rates: power of the learning rate by the parameter's id.
        eps: likewise.
        m: width / base width.
        constant_decay: multiply weight decays by the inverse, so that rate times decay stays what it is.

    Raises:
        CoordCheckError: a group has no learning rate, or no eps, to multiply.
    """
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[tuple[float, float], list[int]] = {}
        for place, parameter in enumerate(group["params"]):
            powers = rates.get(id(parameter), 0.0), eps.get(id(parameter), 0.0)
            parts.setdefault(powers, []).append(place)
        whole = dict(group)
        for number, ((rate, of_eps), places) in enumerate(parts.items()):
            part = group if number == 0 else dict(whole)  # the first one stays the very group that others may hold
            for name in PARALLEL:
                if isinstance(whole.get(name), list):
                    part[name] = [whole[name][place] for place in places]
            _multiply(part, "lr", m**rate, optimizer) if rate else None
            _multiply(part, "eps", m**of_eps, optimizer) if of_eps else None
            if rate and constant_decay and part.get("weight_decay"):
                part["weight_decay"] = part["weight_decay"] * m**-rate
            groups.append(part)
        if not parts:
            groups.append(group)
    if len(groups) > len(optimizer.param_groups) and isinstance(optimizer, torch.optim.LBFGS):
        raise CoordCheckError("LBFGS takes one group of parameters: it has one learning rate for all of them.")
    optimizer.param_groups[:] = groups


def _multiply(group: dict[str, Any], name: str, factor: float, optimizer: Optimizer) -> None:
    value = group.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise CoordCheckError(
            f"a group of {type(optimizer).__name__} has {name}={value!r:.40}, which no number multiplies: give it a "
            f"{name} of its own, and leave schedules of its own, such as relative steps, out."
        )
    group[name] = value * factor
