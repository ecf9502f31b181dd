"""Model and optimizers -> what is trained, and with which learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from coordcheck.recording.hooks.wrappers import layers_of
from coordcheck.recording.layers.activations import ROOT
from coordcheck.recording.updates.decays import pulled
from coordcheck.runs.records import ParameterInfo


class Settings(NamedTuple):
    """How an optimizer holds a parameter; None where it has no such number."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    pulled: bool | None = None
    """Whether the decay pulls by learning rate times weight decay."""


NOT_HELD = Settings()


def parameter_infos(model: nn.Module, optimizers: Sequence[Optimizer], never_called: set[str]) -> list[ParameterInfo]:
    """Every trainable parameter with its learning rate, weight decay and eps, read after the first backward pass.

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
    return [
        ParameterInfo(
            name,
            tuple(parameter.shape),  # of the whole, where ranks hold shards of it
            visible=parameter.grad is None or key in seen,
            **settings.get(key, NOT_HELD)._asdict(),
        )
        for key, (name, parameter) in trained_parameters(model).items()
    ]


def trained_parameters(model: nn.Module) -> dict[int, tuple[str, nn.Parameter]]:
    """Every trainable parameter by its id, once each, under its first name."""
    names: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in layers_of(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                names.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return names


def optimizer_settings(optimizers: Sequence[Optimizer]) -> dict[int, Settings]:
    """The settings of every parameter that an optimizer holds, by the parameter's id."""
    return {
        id(parameter): settings
        for optimizer in optimizers
        for group in optimizer.param_groups
        for settings in [_settings(optimizer, group)]
        for parameter in group["params"]
    }


def _settings(optimizer: Optimizer, group: dict[str, Any]) -> Settings:
    rate, decay, eps = (_optional_float(group.get(name)) for name in ("lr", "weight_decay", "eps"))
    return Settings(rate, decay, eps, pulled(optimizer, group))


def _user(layers: Mapping[str, nn.Module], path: str, module: nn.Module) -> str:
    """The path of the module whose call uses a module's parameters: its own, or a container's owner."""
    while path and isinstance(module, (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)):
        path = path.rpartition(".")[0]
        module = layers[path]
    return path or ROOT


def _optional_float(value: Any) -> float | None:
    """A finite number; None of none, or of several, as Adafactor's eps are."""
    return None if value is None or isinstance(value, (tuple, list)) or not math.isfinite(value) else float(value)
