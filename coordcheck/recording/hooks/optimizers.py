"""Model and optimizers -> what is trained, and with which learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from coordcheck.recording.hooks.wrappers import layers_of
from coordcheck.recording.layers.activations import ROOT
from coordcheck.runs.records import ParameterInfo


def parameter_infos(model: nn.Module, optimizers: Sequence[Optimizer], never_called: set[str]) -> list[ParameterInfo]:
    """Every trainable parameter with its learning rate and weight decay, read after the first backward pass.

    `never_called` names the modules no call of which was seen: a parameter that only such modules own, and that has
    a gradient all the same, did its work where hooks cannot see it.
    """
    settings, layers = optimizer_settings(optimizers), dict(layers_of(model))
    seen = {
        id(parameter)
        for path, module in layers.items()
        if _user(layers, path, module) not in never_called
        for parameter in module._parameters.values()
    }
    names: dict[int, tuple[str, nn.Parameter]] = {}  # once each, under the first name
    for path, module in layers.items():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                names.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return [
        ParameterInfo(
            name,
            tuple(parameter.shape),  # of the whole, where ranks hold shards of it
            *settings.get(key, (None, None)),
            visible=parameter.grad is None or key in seen,
        )
        for key, (name, parameter) in names.items()
    ]


def optimizer_settings(optimizers: Sequence[Optimizer]) -> dict[int, tuple[float | None, float | None]]:
    """Learning rate and weight decay of every parameter that an optimizer holds, by the parameter's id."""
    return {
        id(parameter): (_optional_float(group.get("lr")), _optional_float(group.get("weight_decay")))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _user(layers: Mapping[str, nn.Module], path: str, module: nn.Module) -> str:
    """The path of the module whose call uses a module's parameters: its own, or a container's owner."""
    while path and isinstance(module, (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)):
        path = path.rpartition(".")[0]
        module = layers[path]
    return path or ROOT


def _optional_float(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
