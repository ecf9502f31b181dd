"""What the models of the kinds share: a net around one odd part, optimizers with their rules, and the registration.

Roles are those of `families`, and two more, of nn.Bilinear, whose fan-in is k * k where its inputs have k coordinates:

    role          standard deviation  lr, degree 0  lr, degree 1
    pair          1 / k               k ** -2       1 / k          k x k -> k
    pair readout  k ** -3/2           k ** -2       k ** -2        k x k -> a fixed number

An update whose norm is given, such as that of a normalised gradient, acts as one singular direction of that size:

    role     input, vector  hidden  narrow, readout
    lr       n ** 1/2       const   n ** -1/2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench import families
from faultbench.families import BASE, CLASSES, INPUTS, Family, Setup, SignDescent, labelled_batch, linear
from faultbench.faults import Change, Truth, control, fault

ADAM = {**families.ADAM, "pair": -2.0, "pair readout": -2.0}
SGD = {**families.SGD, "pair": -1.0, "pair readout": -2.0}
NORM = {"input": 0.5, "vector": 0.5, "hidden": 0.0, "narrow": -0.5, "readout": -0.5, "constant": 0.0}


class Recipe(NamedTuple):
    """An optimizer with the rule that its learning rates follow in µP."""

    make: Callable[..., Any]
    """(groups, lr) -> an optimizer, or several."""
    exponents: dict[str, float]
    rate: float
    degree: int = 0


RECIPES = {
    "adam": Recipe(lambda groups, lr: torch.optim.Adam(groups, lr=lr, eps=1e-12), ADAM, 1e-3),
    "adamw": Recipe(torch.optim.AdamW, ADAM, 1e-3),
    "sign": Recipe(SignDescent, ADAM, 1e-3),
    "sgd": Recipe(torch.optim.SGD, SGD, 0.1, 1),
    "momentum": Recipe(lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9), SGD, 0.1, 1),
}


def trained(model: nn.Module, width: int, recipe: str | Recipe) -> Setup:
    """A model whose parameters have roles, with an optimizer in µP of one group per parameter."""
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    growth = width / BASE
    groups = [
        {
            "params": [p],
            "name": name,
            "lr": chosen.rate * growth ** (chosen.exponents[p.role] + (1 + chosen.degree) * p.theta),
        }
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    return Setup(model, [chosen.make(groups, lr=chosen.rate)], width)


class Net(nn.Module):
    """(batch, [time,] INPUTS) -> (batch, CLASSES) with one part in the middle; times are averaged."""

    def __init__(
        self,
        width: int,
        middle: Callable[[int], nn.Module],
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        residual: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.input = linear(INPUTS, width, "input", bias=bias)
        self.middle = middle(width)
        self.readout = linear(width, CLASSES, "readout", bias=bias)
        self.activation, self.residual = activation, residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.input(x))
        x = x + self.middle(x) if self.residual else self.activation(self.middle(x))
        return self.readout(x.mean(1) if x.dim() == 3 else x)


class Kind:
    """One kind of model: its letter, its name, and the registration of its cases."""

    def __init__(self, letter: str, title: str) -> None:
        self.letter, self.title = letter, title
        KINDS[letter] = title

    def family(
        self,
        name: str,
        make: Callable[[int], nn.Module],
        recipe: str | Recipe = "adam",
        *,
        batch: Any = None,
        loss: Callable[..., Tensor] = F.cross_entropy,
        called: str = "",
    ) -> Family:
        """A family; `called` is what the optimizer is called where it has no name in `RECIPES`."""
        chosen = labelled_batch(16, INPUTS) if batch is None else batch
        of = recipe if isinstance(recipe, str) else called
        return Family(f"{self.letter} {name}, {of}", lambda width: trained(make(width), width, recipe), chosen, loss)

    def net(
        self, name: str, middle: Callable[[int], nn.Module], recipe: str | Recipe = "adam", **options: Any
    ) -> Family:
        """A family of `Net` around one part; on sequences when `times` is given."""
        batch = labelled_batch(8, options.pop("times"), INPUTS) if "times" in options else None
        called = options.pop("called", "")
        return self.family(name, lambda width: Net(width, middle, **options), recipe, batch=batch, called=called)

    def healthy(
        self, family: Family, slug: str = "healthy", mechanism: str = "correct in µP", *changes: Change
    ) -> None:
        control(family, slug, mechanism, *changes, kind=self.letter)

    def planted(self, family: Family, slug: str, mechanism: str, *changes: Change, truth: Truth | None = None) -> None:
        fault(family, slug, mechanism, *changes, truth=truth, kind=self.letter)


KINDS: dict[str, str] = {}
"""Letter -> name, in the order of registration."""
