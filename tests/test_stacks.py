"""A stack of matrices, one for each head or block, is judged as the matrix of all of them."""

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

IN, OUT, BASE, SIZE = 16, 5, 32, 8
WIDTHS = (32, 64, 128)


class Stack(nn.Module):
    """Matrices of (size, size), as many as give the width."""

    def __init__(self, width: int, through: Callable[[Tensor, Tensor], Tensor], size: int = SIZE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // size, size, size) * size**-0.5)
        self.register_buffer("mask", (torch.rand(width // size, size, size) > 0.5).float())
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(len(x), len(self.weight), -1)  # (batch, heads, size)
        return self.through(heads, self.weight).reshape(len(x), -1)


class Masked(Stack):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(len(x), len(self.weight), -1).transpose(0, 1)
        return torch.bmm(heads, self.weight * self.mask).transpose(0, 1).reshape(len(x), -1)


class Scores(nn.Module):
    """A vector for each head, and what it scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // SIZE, SIZE) * SIZE**-0.5)
        self.back = nn.Linear(width // SIZE, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.einsum("bhi,hi->bh", x.view(len(x), -1, SIZE), self.weight))


def one_by_one(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([F.linear(x[:, head], w[head]) for head in range(len(w))], 1)


def added(x: Tensor, w: Tensor) -> Tensor:
    return torch.baddbmm(torch.zeros(len(w), 1, w.shape[-1]), x.transpose(0, 1), w).transpose(0, 1)


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "einsum": lambda width: Stack(width, lambda x, w: torch.einsum("bhi,hio->bho", x, w)),
    "einsum, weight first": lambda width: Stack(width, lambda x, w: torch.einsum("hoi,bhi->bho", w, x)),
    "bmm": lambda width: Stack(width, lambda x, w: torch.bmm(x.transpose(0, 1), w).transpose(0, 1)),
    "bmm, weight first": lambda width: Stack(width, lambda x, w: torch.bmm(w, x.permute(1, 2, 0)).permute(2, 0, 1)),
    "matmul": lambda width: Stack(width, lambda x, w: (x[..., None, :] @ w)[..., 0, :]),
    "baddbmm": lambda width: Stack(width, added),
    "one by one": lambda width: Stack(width, one_by_one),
    "few": lambda width: Stack(width, lambda x, w: torch.einsum("bhi,hio->bho", x, w), 16),  # of 2, 4, 8
    "masked": lambda width: Masked(width, lambda x, w: x),
    "grown twice": lambda width: Stack(width, lambda x, w: torch.einsum("bhi,hio->bho", x, w), 4 if width < 128 else 8),
    "scores": Scores,
}


def built(mid: Callable[[int], nn.Module], *, init: float = 0.0, rate: float = 0.0, sgd: bool = False) -> Any:
    """An MLP in µP around a stack, whose matrices are scaled by powers of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(IN, width), nn.ReLU(), mid(width), nn.ReLU(), nn.Linear(width, OUT))
        m = width / BASE
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        weight = model[2].weight
        weight.data *= m**init
        fan_in = {"4.weight": m, "2.back.weight": m, "2.weight": (weight.shape[-1] / SIZE)}
        groups = []
        for path, parameter in model.named_parameters():
            power = m**rate if parameter is weight else 1.0
            own = 1 / fan_in.get(path, 1.0)
            if sgd:
                own = m if path not in ("4.weight", "4.bias", "2.back.weight") else (1 if path[0] == "2" else own)
            groups.append({"params": [parameter], "lr": (0.05 if sgd else 1e-3) * own * power})
        return model, (torch.optim.SGD if sgd else torch.optim.Adam)(groups)

    return build


def found(mid: Callable[[int], nn.Module], **scaled: Any) -> dict[str, str]:
    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(built(mid, **scaled), batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    assert not (verdicts["verdict"] == "not visible").any()
    return told(verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_one_is_not_blamed(kind: str):
    assert found(KINDS[kind]) == {}


@pytest.mark.parametrize(
    ("kind", "power"),  # a vector for each head is too few numbers to tell that it vanishes
    [(kind, power) for kind in KINDS for power in (0.5, -0.5) if (kind, power) != ("scores", -0.5)],
)
def test_its_init_is_found(kind: str, power: float):
    assert found(KINDS[kind], init=power) == {"2.weight": f"init {-power:g}"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_learning_rate_is_found(kind: str):
    assert found(KINDS[kind], rate=-1.0) == {"2.weight": "lr 1"}


def test_one_matrix_for_all_examples_is_no_stack():
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Stack(width, lambda x, w: torch.bmm(x.reshape(len(x), 1, -1), w[0].expand(len(x), -1, -1)), width)
        return nn.Sequential(nn.Linear(IN, width), model), torch.optim.Adam(model.parameters(), lr=1e-3 * BASE / width)

    batch = torch.randn(4, IN), torch.randint(OUT, (4,))
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=1).verdicts
    assert [name for name in verdicts["layer"] if name.startswith("1.")] == ["1.weight"]


@pytest.mark.parametrize("kind", ["einsum", "bmm", "one by one", "few"])
def test_under_sgd_it_learns_as_an_input_matrix_does(kind: str):
    assert found(KINDS[kind], sgd=True) == {}
    assert found(KINDS[kind], sgd=True, rate=-1.0) == {"2.weight": "lr 1"}


HELD: list[Any] = [
    pytest.param(lambda x, w: torch.einsum("bhi,hio->bho", x, w), (4, 3, 8), (3, 8, 5), 3, id="einsum"),
    pytest.param(lambda x, w: torch.einsum("bi,eoi->beo", x, w), (4, 8), (3, 5, 8), 1, id="of one input"),
    pytest.param(lambda x, w: torch.einsum("bi,io->bo", x, w), (4, 8), (8, 5), 1, id="one"),
    pytest.param(lambda x, w: torch.bmm(x, w), (3, 4, 8), (3, 8, 5), 3, id="bmm"),
    pytest.param(lambda x, w: x @ w, (2, 3, 4, 8), (2, 3, 8, 5), 6, id="in two axes"),
    pytest.param(lambda x, w: torch.bmm(x, w.expand(3, -1, -1)), (3, 4, 8), (8, 5), 1, id="repeated"),
    pytest.param(lambda x, w: torch.bmm(x, w[torch.arange(3) % 2]), (3, 4, 8), (2, 8, 5), 1, id="picked"),
    pytest.param(lambda x, w: F.linear(x, w), (4, 8), (5, 8), 1, id="linear"),
]


@pytest.mark.parametrize(("function", "inputs", "shape", "expected"), HELD)
def test_matrices_of_a_stack_are_counted(function: Any, inputs: Any, shape: Any, expected: int):
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.weight)

    with Tracer(model := Used()) as tracer:
        model(torch.randn(inputs))
    (use,) = tracer.uses.values()
    assert use.matrices == expected
