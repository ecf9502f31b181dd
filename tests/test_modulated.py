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
    """An MLP with a square matrix in the middle that is made of the input's features, of an example or of all."""

    def __init__(self, width: int, through: Through, std: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(IN, width), nn.Linear(width, OUT)
        nn.init.normal_(self.last.weight, std=BASE**0.5 / width)
        self.make = nn.Linear(IN, width * width)
        nn.init.normal_(self.make.weight, std=std)
        nn.init.zeros_(self.make.bias)
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.table = nn.Parameter(torch.randn(width, width, IN) * std)
        self.experts = nn.Parameter(torch.randn(IN, width, width) * std)
        self.classes = nn.Parameter(torch.randn(3, width * width) * std)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.through(self, F.relu(self.first(x)), torch.tanh(x))))


def square(h: Tensor) -> Tensor:
    return h.view(*h.shape[:-1], round(h.shape[-1] ** 0.5), -1)


def classed(s: Any, x: Tensor, z: Tensor) -> Tensor:
    return torch.bmm(square(F.embedding(torch.arange(len(x)) % 3, s.classes)), x[..., None])[..., 0]


def kernels(s: Any, x: Tensor, z: Tensor) -> Tensor:
    made = square(s.make(z)).flatten(0, 1).unsqueeze(-1)
    return F.conv1d(x.reshape(1, -1, 1), made, groups=len(x)).view(len(x), -1)


def renormed(s: Any, x: Tensor, z: Tensor) -> Tensor:
    made = square(s.make(z))
    return torch.bmm(made * torch.rsqrt(made.square().sum(-1, keepdim=True)), x[..., None])[..., 0]


MAKERS: dict[str, tuple[Through, str]] = {
    "for all": (lambda s, x, z: F.linear(x, square(s.make(z.mean(0)))), "make.weight"),
    "through a curve": (lambda s, x, z: F.linear(x, square(torch.tanh(s.make(z.mean(0))))), "make.weight"),
    "of one": (lambda s, x, z: F.linear(x, square(s.make(z[:1]))[0]), "make.weight"),
    "a sum": (lambda s, x, z: F.linear(x, torch.einsum("k,kij->ij", z.mean(0), s.experts)), "experts"),
    "a sum, on rows": (lambda s, x, z: x @ torch.einsum("k,kij->ij", z.mean(0), s.experts).T, "experts"),
    "for each": (lambda s, x, z: torch.bmm(square(s.make(z)), x[..., None])[..., 0], "make.weight"),
    "halved": (lambda s, x, z: torch.einsum("bi,bio->bo", x, square(s.make(z)) / 2), "make.weight"),
    "kernels": (kernels, "make.weight"),
    "added": (lambda s, x, z: torch.bmm(s.weight + square(s.make(z)), x[..., None])[..., 0], "make.weight"),
    "one table": (
        lambda s, x, z: torch.einsum("boi,bi->bo", (s.table @ z[:, None, :, None])[..., 0], x),
        "table",
    ),
    "mixed": (
        lambda s, x, z: torch.bmm(torch.einsum("be,eoi->boi", z, s.experts), x[..., None])[..., 0],
        "experts",
    ),
    "of a class": (classed, "classes"),
}


def parts(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def made(through: Through, name: str, *, init: float = 0.0, rate: float = 0.0) -> Any:
    """The verdicts on one in µP whose maker is scaled by powers of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        m = width / BASE
        model = Hyper(width, through, 0.25 * width**-0.5 * m**init)
        powers = {part: 0.0 if part.startswith("first") or part == "last.bias" else -1.0 for part in parts(model)}
        powers[name] += rate
        return model, torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 * m ** powers[part]} for part, p in parts(model).items()]
        )

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    return coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts


@pytest.mark.parametrize("kind", MAKERS)
def test_what_makes_a_weight_is_judged_as_the_weight(kind: str):
    through, name = MAKERS[kind]
    verdicts = made(through, name)
    assert told(verdicts) == {}
    row = verdicts.set_index("layer").loc[name]
    assert (row["verdict"], row["role"]) == ("ok", "hidden")


@pytest.mark.parametrize("kind", MAKERS)
def test_the_init_of_what_makes_a_weight_is_found(kind: str):
    through, name = MAKERS[kind]
    power = -0.5 if kind == "through a curve" else 0.5  # it flattens what is too large
    assert told(made(through, name, init=power)) == {name: f"init {-power:g}"}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_learning_rate_of_what_makes_a_weight_is_found(kind: str):
    through, name = MAKERS[kind]
    assert told(made(through, name, rate=1.0)) == {name: "lr -1"}


def test_what_makes_a_weight_that_cannot_be_made_again_is_not_judged_by_its_output():
    row = made(renormed, "make.weight").set_index("layer").loc["make.weight"]
    assert (row["verdict"], row["culprit"]) == ("not visible", False)
    assert "what it makes is a weight" in row["explanation"]


ACTIVATIONS: list[Any] = [
    pytest.param(lambda w, x: (x + w) @ x.mT, "add", id="positions"),
    pytest.param(lambda w, x: (x * w) @ x.mT, "mul", id="gains"),
    pytest.param(lambda w, x: F.linear(x + w, x[0]), "add", id="an input"),
    pytest.param(lambda w, x: F.linear(x[0] @ w.T, x[1] @ w.T), "matmul", id="two embeddings"),
    pytest.param(lambda w, x: (x + (x + w)) @ x.mT, "add", id="a stream"),
    pytest.param(
        lambda w, x: torch.einsum("bqhd,bkhd->bhqk", heads(x, w), F.rms_norm(heads(x, w), (2,))), "einsum", id="heads"
    ),
]


def heads(x: Tensor, w: Tensor) -> Tensor:
    """Queries or keys, whose channels lie in two axes."""
    return torch.einsum("bti,hdi->bthd", x, w[:4].view(2, 2, 8))


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
