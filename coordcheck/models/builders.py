"""What the reference models share: applying a parametrization to a module's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from coordcheck.common.errors import CoordCheckError
from coordcheck.models.parametrizations import Parametrization, Rule
from coordcheck.models.parametrizations import parametrization as find_parametrization

Builder = Callable[[int], tuple[nn.Module, Optimizer]]

OPTIMIZERS: Mapping[str, tuple[Callable[..., Optimizer], str]] = {
    "sgd": (SGD, "sgd"),
    "adam": (Adam, "adam"),
    "adamw": (AdamW, "adam"),
}

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
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
    model: ReferenceModel, table: Parametrization, *, optimizer: str, lr: float, scale: float
) -> Optimizer:
    """An optimizer with one group per learning rate: `lr * scale ** rule.lr`, scale = width / base_width."""
    groups: dict[float, list[Tensor]] = {}
    for parameter, role in model.roles():
        groups.setdefault(lr * scale ** table.rules[role].lr, []).append(parameter)
    kind, _ = OPTIMIZERS[optimizer]
    return kind([{"params": params, "lr": rate} for rate, params in groups.items()])


class ReferenceModel(Protocol):
    """A model that tells the role of each of its parameters."""

    def roles(self) -> Iterator[tuple[Tensor, str]]: ...


def builder(
    family: str,
    model: Callable[[int, Any, Parametrization], Any],
    config: Callable[..., Any],
    parametrization: str,
    fields: Mapping[str, Any],
    *,
    optimizer: str,
    **options: Any,
) -> Builder:
    """The `build(width)` of a reference model; picklable, and described by its settings.

    Returns:
        `build(width) -> (model, optimizer)`.

    Raises:
        CoordCheckError: an unknown parametrization, optimizer or configuration field.
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    table = find_parametrization(family, parametrization, OPTIMIZERS[optimizer][1])
    try:
        settings = config(**fields)
    except TypeError as error:
        raise CoordCheckError(f"{error}; known are {', '.join(vars(config)['__dataclass_fields__'])}.") from error
    return partial(_build, model=model, config=settings, table=table, optimizer=optimizer, **options)


def _build(
    width: int,
    *,
    model: Callable[[int, Any, Parametrization], Any],
    config: Any,
    table: Parametrization,
    optimizer: str,
    lr: float,
    base_width: int,
    zero_init: tuple[str, ...],
) -> tuple[nn.Module, Optimizer]:
    made = model(width, config, table)
    initialise(made, table, zero_init)
    return made, make_optimizer(made, table, optimizer=optimizer, lr=lr, scale=width / base_width)


def check_choice(what: str, value: object, known: Iterable[object]) -> None:
    """Refuse an option's value that is not known, naming those that are."""
    known = list(known)
    if value not in known:
        raise CoordCheckError(f"{what} must be one of {', '.join(map(repr, known))}, got {value!r}.")
