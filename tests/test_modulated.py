"""A weight that data change before its use is judged as the matrix that it acts as, or told as not visible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, told
from torch import Tensor, nn

import coordcheck
from coordcheck.recording.graph.tracer import Tracer

IN, OUT, BASE = 16, 5, 32
WIDTHS = (32, 64, 128)

Through = Callable[[Any, Tensor, Tensor], Tensor]


class Mid(nn.Module):
    """A square matrix that a style of each example, or of all, changes."""

    def __init__(self, width: int, through: Through) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.style = nn.Linear(width, width)
        self.register_buffer("drawn", torch.randn(width, width))
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self, x, 1 + 0.5 * torch.tanh(self.style(x)))


def demodulated(s: Any, x: Tensor, style: Tensor) -> Tensor:
    weight = s.weight[None] * style[:, None]
    return torch.einsum("bi,boi->bo", x, weight * torch.rsqrt(weight.square().sum(-1, keepdim=True) + 1e-8))


def convolved(s: Any, x: Tensor, style: Tensor) -> Tensor:
    weight = (s.weight[None, :, :, None] * style[:, None, :, None]).flatten(0, 1)  # (batch * out, in, 1)
    return F.conv1d(x.reshape(1, -1, 1), weight, groups=len(x)).view(len(x), -1)


def adapted(s: Any, x: Tensor, style: Tensor) -> Tensor:
    """A step on a loss of its own, as in MAML."""
    (gradient,) = torch.autograd.grad(F.linear(x, s.weight).square().mean(), s.weight, create_graph=True)
    return F.linear(x, s.weight - 0.1 * gradient)


def adapted_twice(s: Any, x: Tensor, style: Tensor) -> Tensor:
    weight = s.weight
    for _ in range(2):
        (gradient,) = torch.autograd.grad(F.linear(x, weight).square().mean(), weight, create_graph=True)
        weight = weight - 0.1 * gradient
    return F.linear(x, weight)


def adapted_by_a_transform(s: Any, x: Tensor, style: Tensor) -> Tensor:
    gradient = torch.func.grad(lambda weight: F.linear(x, weight).square().mean())(s.weight)
    return F.linear(x, s.weight - 0.1 * gradient)


KINDS: dict[str, Through] = {
    "times a style, bmm": lambda s, x, style: torch.bmm(s.weight * style[:, None], x[..., None])[..., 0],
    "times a style, einsum": lambda s, x, style: torch.einsum("bi,boi->bo", x, s.weight * style[:, None]),
    "times what all share": lambda s, x, style: F.linear(x, s.weight * style.mean(0)),
    "of rows": lambda s, x, style: F.linear(x, style.mean(0)[:, None] * s.weight.clone()),
    "demodulated": demodulated,
    "grouped convolution": convolved,
    "plus what all share": lambda s, x, style: F.linear(
        x, s.weight + 0.1 * s.drawn * style.mean(0) * len(style.T) ** -0.5
    ),
    "fast": lambda s, x, style: F.linear(x, s.weight + 0.1 * style.mean(0)[:, None] * x.mean(0) / len(style.T)),
    "adapted": adapted,
    "adapted twice": adapted_twice,
    "adapted, by a transform": adapted_by_a_transform,
}


def found(kind: str, *, init: float = 0.0, rate: float = 0.0, sgd: bool = False) -> dict[str, str]:
    """The culprits of an MLP in µP around a layer whose matrix is scaled by powers of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(
            nn.Linear(IN, width), nn.ReLU(), Mid(width, KINDS[kind]), nn.ReLU(), nn.Linear(width, OUT)
        )
        m = width / BASE
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        nn.init.normal_(model[2].style.weight, std=width**-0.5)
        model[2].weight.data *= m**init
        powers = {"2.weight": rate - 1, "2.style.weight": -1.0, "4.weight": -1.0}
        return model, torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 * m ** powers.get(name, 0.0)} for name, p in model.named_parameters()]
        )

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    assert verdicts.set_index("layer").loc["2.weight", "role"] == "hidden"
    return told(verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_one_is_not_blamed(kind: str):
    assert found(kind) == {}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "demodulated"])
def test_its_init_is_found(kind: str):
    assert found(kind, init=0.5) == {"2.weight": "init -0.5"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_learning_rate_is_found(kind: str):
    assert found(kind, rate=1.0) == {"2.weight": "lr -1"}


def test_where_its_size_makes_no_difference_none_is_blamed():
    assert found("demodulated", init=0.5).keys() <= {"2.weight"}


class Hyper(nn.Module):
    """A square matrix that is made of a style alone, or added to what is made of it."""

    def __init__(self, width: int, through: Through) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.make = nn.Linear(4, width * width)
        nn.init.normal_(self.make.weight, std=0.5 * width**-0.5)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self, x, x[:, :4])


def square(h: Tensor) -> Tensor:
    return h.view(*h.shape[:-1], round(h.shape[-1] ** 0.5), -1)


MAKERS: dict[str, tuple[Through, str]] = {
    "for all": (lambda s, x, z: F.linear(x, square(s.make(z.mean(0)))), "what it makes is a weight"),
    "through a curve": (
        lambda s, x, z: F.linear(x, square(torch.tanh(s.make(z.mean(0))))),
        "what it makes is a weight",
    ),
    "for each": (lambda s, x, z: torch.bmm(square(s.make(z)), x[..., None])[..., 0], "what it makes is a weight"),
    "added": (lambda s, x, z: torch.bmm(s.weight + square(s.make(z)), x[..., None])[..., 0], "whether as a weight"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_makes_a_weight_is_not_judged_by_its_output(kind: str):
    through, reason = MAKERS[kind]

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(IN, width), nn.ReLU(), Hyper(width, through), nn.ReLU(), nn.Linear(width, OUT))
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    batch = torch.randn(32, IN), torch.randint(OUT, (32,))
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=1).verdicts
    row = verdicts.set_index("layer").loc["2.weight" if kind == "added" else "2.make.weight"]
    assert (row["verdict"], row["culprit"]) == ("not visible", False)
    assert reason in row["explanation"]


ACTIVATIONS: list[Any] = [
    pytest.param(lambda w, x: (x + w) @ x.mT, "add", id="positions"),
    pytest.param(lambda w, x: (x * w) @ x.mT, "mul", id="gains"),
    pytest.param(lambda w, x: F.linear(x + w, x[0]), "add", id="an input"),
    pytest.param(lambda w, x: F.linear(x[0] @ w.T, x[1] @ w.T), "matmul", id="two embeddings"),
    pytest.param(lambda w, x: (x + (x + w)) @ x.mT, "add", id="a stream"),
]


@pytest.mark.parametrize(("function", "operation"), ACTIVATIONS)
def test_tables_that_meet_activations_are_no_weights(function: Any, operation: str):
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return function(self.weight, x)

    with Tracer(model := Used()) as tracer:
        model(torch.randn(3, 5, 8))
    assert [used for _, used in tracer.uses] == [operation]
    assert operation == "add" or not any(use.unjudged for use in tracer.uses.values())
