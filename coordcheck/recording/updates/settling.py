"""Optimizers whose updates become others within the first steps, as those of RAdam, which is gradient descent at first.

RAdam divides by its second moment from the sixth step on (Liu et al. 2020, arXiv:1908.03265): its learning rates follow
Adam's rule, by which the few updates before are small, and fall with the width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from coordcheck.recording.updates.degrees import degrees

LATER = 8  # steps after which an update is of the kind that it stays
OTHER = 0.5  # difference of two degrees from which on they are two kinds


def settled_degrees(model: nn.Module, optimizers: list[Optimizer], first: Mapping[str, float]) -> dict[str, float]:
    """The degrees after some steps, of the parameters whose updates were of another kind at first.

    Args:
        model: the model.
        optimizers: torch's own.
        first: the degrees of the first updates.
    """
    if not any(degree > OTHER for degree in first.values()):  # what normalises does so from the first step on
        return {}
    later = degrees(model, optimizers, LATER)
    return {name: degree for name, degree in later.items() if abs(degree - first.get(name, degree)) > OTHER}


def settle(optimizers: Sequence[Optimizer]) -> None:
    """Take those steps with learning rates of 0, on the gradients that are there, which moves nothing."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(LATER):
            optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
