"""What training frameworks put around a model and its optimizers, taken off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from coordcheck.errors import CoordCheckError


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside of a data-parallel wrapper, whose layers have the same names in every job.

    Raises:
        CoordCheckError: a DataParallel on several devices.
    """
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise CoordCheckError(
                "the model is a DataParallel on several devices, which calls copies of it. Use one device, or "
                "DistributedDataParallel."
            )
        model = model.module
    return model


def unwrapped_optimizers(given: Any) -> list[Optimizer]:
    """One optimizer or several, without the wrappers that training frameworks put around them.

    Raises:
        CoordCheckError: none, or something else.
    """
    found = []
    for one in given if isinstance(given, Sequence) else [given]:
        while isinstance(one, Optimizer) and isinstance(inner := getattr(one, "optimizer", None), Optimizer):
            one = inner
        found.append(one)
    if not found or not all(isinstance(one, Optimizer) for one in found):
        raise CoordCheckError(f"optimizer must be a torch.optim.Optimizer or several, got {given!r}.")
    return found


def skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler told a fused optimizer to leave the parameters as they are."""
    return bool(getattr(optimizer, "found_inf", False))
