"""µP by hand: initial values and learning rates from how a parameter's fans grow with the width.

    role      fan_in  fan_out  standard deviation         lr, Adam  lr, SGD
    input     const   grows    fan_in ** -1/2             const     m
    hidden    grows   grows    fan_in ** -1/2             1 / m     const
    narrow    grows   const    fan_in ** -1/2             1 / m     const
    readout   grows   const    fan_in ** -1/2 m ** -1/2   1 / m     1 / m
    constant  const   const    fan_in ** -1/2             const     const
    vector    -       grows    as the model draws it      const     m

m is the width over `BASE`. What has one axis is a vector or a constant; biases start at 0. A narrow matrix feeds
something inside of the model, such as a router or the key of an MQA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

BASE = 64
RATES = {
    "adam": {"hidden": -1, "narrow": -1, "readout": -1},
    "sgd": {"input": 1, "vector": 1, "readout": -1},
}
"""Optimizer -> role -> the power of m in its learning rate."""

Axes = tuple[int | None, int]
"""The axes of a raw tensor that are its fan-in and its fan-out; a fan-in of None is 1."""


@dataclass(frozen=True)
class Architecture:
    """A model of the literature at every width, its batch and its loss, and what its shapes do not tell."""

    name: str
    source: str
    make: Callable[[int], nn.Module]
    batch: Any
    loss: Callable[[nn.Module, Any], Tensor]
    axes: Mapping[str, Axes] = field(default_factory=dict)
    """Glob of parameters -> axes, for tensors that belong to no layer of `torch.nn`."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Glob -> role, where the shapes do not tell."""
    keep: tuple[str, ...] = ()
    """Globs of parameters that the model itself draws, such as those of zeros."""
    spare: tuple[str, ...] = ()
    """Globs of matrices in which no fault is planted, because theory knows no single answer there."""
    optimizer: str = "adam"
    lr: float = 1e-3
    widths: tuple[int, ...] = (64, 128, 256)

    def build(self, width: int, change: Callable[[Setup], None] | None = None) -> tuple[nn.Module, Optimizer]:
        """The model in µP with its optimizer, and with one thing changed."""
        setup = Setup.of(self, width)
        if change is not None:
            change(setup)
        return setup.model, setup.optimizer()


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    source: str, batch: Any, loss: Callable[[nn.Module, Any], Tensor], **choices: Any
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a class of models, made from the width alone, into `ARCHITECTURES` under its own name."""

    def enter(make: type[nn.Module]) -> type[nn.Module]:
        ARCHITECTURES[make.__name__] = Architecture(make.__name__, source, make, batch, loss, **choices)
        return make

    return enter


def matching(name: str, globs: Mapping[str, Any]) -> Any:
    """The value of the first glob that a name matches."""
    return next((value for glob, value in globs.items() if fnmatchcase(name, glob)), None)


def fans(module: nn.Module, tensor: Tensor, axes: Axes | None) -> tuple[int, int] | None:
    """Over how many numbers a matrix sums, and how many it gives; None for what is no matrix."""
    shape = tensor.shape
    if axes is not None:
        return (1 if axes[0] is None else shape[axes[0]]), shape[axes[1]]
    if tensor.ndim < 2:
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 1, shape[1]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return shape[0] * math.prod(shape[2:]) // math.prod(module.stride), shape[1] * module.groups
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return math.prod(shape[1:]), shape[0]
    raise LookupError(f"a tensor of shape {tuple(shape)} needs its axes by hand")


def role(fan: tuple[int, int] | None, wider: tuple[int, int] | None, grows: bool) -> str:
    """The role of a parameter with these fans, and those that it has at twice the width."""
    if fan is None or wider is None:
        return "vector" if grows else "constant"
    names = {(False, True): "input", (True, True): "hidden", (True, False): "readout", (False, False): "constant"}
    return names[wider[0] > fan[0], wider[1] > fan[1]]


@dataclass
class Setup:
    """A model in µP, and the learning rate of each of its parameters."""

    model: nn.Module
    roles: dict[str, str]
    rates: dict[str, float]
    growth: float
    kind: str

    @classmethod
    def of(cls, architecture: Architecture, width: int) -> Setup:
        """The architecture at a width, drawn anew."""
        model, growth = architecture.make(width), width / BASE
        setup = cls(model, {}, {}, growth, architecture.optimizer)
        with torch.random.fork_rng([]):
            wide = dict(architecture.make(2 * width).named_parameters())
        powers = RATES["sgd" if setup.kind == "sgd" else "adam"]
        for name, parameter in model.named_parameters():
            owner, axes = model.get_submodule(name.rpartition(".")[0]), matching(name, architecture.axes)
            fan = fans(owner, parameter, axes)
            found = role(fan, fans(owner, wide[name], axes), wide[name].shape != parameter.shape)
            found = matching(name, architecture.roles) or found
            if not any(fnmatchcase(name, glob) for glob in architecture.keep):
                draw(name, parameter, found, fan, growth)
            setup.roles[name], setup.rates[name] = found, architecture.lr * growth ** powers.get(found, 0)
        return setup

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def optimizer(self) -> Optimizer:
        groups = [
            {"params": [p], "lr": self.rates[name]} for name, p in self.model.named_parameters() if p.requires_grad
        ]
        kinds = {"adam": Adam, "adamw": AdamW, "sgd": torch.optim.SGD}
        return kinds[self.kind](groups, lr=1e-3)


def draw(name: str, parameter: nn.Parameter, role: str, fan: tuple[int, int] | None, growth: float) -> None:
    """Draw a matrix for its role, and set a bias to 0; other vectors stay as they are."""
    with torch.no_grad():
        if fan is not None:
            parameter.normal_(0.0, fan[0] ** -0.5 * (growth**-0.5 if role == "readout" else 1.0))
        elif "bias" in name.rpartition(".")[2]:
            parameter.zero_()
