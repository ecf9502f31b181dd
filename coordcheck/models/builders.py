"""What the reference models share: applying a parametrization to a module's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from coordcheck.errors import CoordCheckError
from coordcheck.models.parametrizations import Parametrization, Rule

OPTIMIZERS: Mapping[str, tuple[type[Optimizer], str]] = {
    "sgd": (SGD, "sgd"),
    "adam": (Adam, "adam"),
    "adamw": (AdamW, "adam"),
}

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "squared relu": lambda x: F.relu(x).square(),
}


class Linear(nn.Linear):
    """A linear layer of one role, whose weight acts with a forward multiplier: (..., in) -> (..., out)."""

    def __init__(self, inputs: int, outputs: int, *, role: str, rule: Rule, grows: bool, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.role = role
        self.multiplier = inputs**rule.multiplier if grows else 1.0
        # a fan-in that does not grow keeps its 1/sqrt(fan_in) in every parametrization
        self.std = float(inputs) ** (rule.init if grows else -0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.multiplier == 1.0:
            return super().forward(x)
        return F.linear(x * self.multiplier, self.weight, self.bias)


def initialise(model: nn.Module, table: Parametrization, zero_init: Iterable[str]) -> None:
    """Draw every weight as `table` says; roles in `zero_init` start at exactly zero.

    Raises:
        CoordCheckError: a role in `zero_init` that the model does not have.
    """
    zeros = set(zero_init)
    unknown = zeros - {module.role for module in model.modules() if isinstance(module, Linear)}
    if unknown:
        raise CoordCheckError(f"zero_init names {sorted(unknown)}, which this model does not have.")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear):
                if not table.torch_init:
                    module.weight.normal_(std=module.std)
                    if module.bias is not None:
                        module.bias.zero_()
                if module.role in zeros:
                    module.weight.zero_()
            elif isinstance(module, nn.Embedding) and not table.torch_init:
                module.weight.normal_()


def make_optimizer(
    named_roles: Iterable[tuple[nn.Parameter, str]],
    table: Parametrization,
    *,
    optimizer: str,
    lr: float,
    scale: float,
    **options: Any,
) -> Optimizer:
    """An optimizer with one group per learning rate: `lr * scale ** rule.lr`, scale = width / base_width."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, role in named_roles:
        groups.setdefault(lr * scale ** table.rules[role].lr, []).append(parameter)
    kind, _ = OPTIMIZERS[optimizer]
    return kind([{"params": params, "lr": rate} for rate, params in groups.items()], **options)  # type: ignore[call-arg]  # every class here takes groups


def rule_kind(optimizer: str) -> str:
    """Which of a parametrization's tables an optimizer follows: "sgd" or "adam".

    Raises:
        CoordCheckError: an optimizer the reference models do not know.
    """
    if optimizer not in OPTIMIZERS:
        raise CoordCheckError(f"there is no optimizer {optimizer!r} here; known are {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[optimizer][1]


def check_choice(what: str, value: object, known: Iterable[object]) -> None:
    """Refuse an option's value that is not known, naming those that are."""
    known = list(known)
    if value not in known:
        raise CoordCheckError(f"{what} must be one of {', '.join(map(repr, known))}, got {value!r}.")
