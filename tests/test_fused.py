"""Matrices that are fused into one parameter are told one by one, in whichever order they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, told
from torch import Tensor, nn

import coordcheck

IN, OUT, BASE, HEAD = 16, 5, 32, 8
WIDTHS = (32, 64, 128)


class Fused(NamedTuple):
    """Two matrices of width n in one parameter."""

    shape: Callable[[int], tuple[int, ...]]
    """The parameter's shape at width n."""
    fan_in: Callable[[int], int]
    second: Callable[[Tensor], Tensor]
    """The view of it that is the second matrix."""
    both: Callable[[Tensor, Tensor], Any]
    """What they give, of the parameter and of (batch, n): two of (batch, n)."""


def rows(second: Callable[[Tensor], Tensor], both: Callable[[Tensor, Tensor], Any]) -> Fused:
    """Of (2 n, n)."""
    return Fused(lambda n: (2 * n, n), lambda n: n, second, both)


def heads(h: Tensor) -> Tensor:
    """(batch, 2 n) -> (batch, heads, 2, head size)."""
    return h.view(len(h), -1, 2, HEAD)


def flat(pair: Any) -> list[Tensor]:
    return [half.reshape(len(half), -1) for half in pair]


def of_heads(w: Tensor) -> Tensor:
    return w.view(-1, 2, HEAD, w.shape[-1])[:, 1]


def taken_by_heads(w: Tensor, x: Tensor) -> list[Tensor]:
    split = w.view(-1, 2, HEAD, w.shape[-1])
    return [F.linear(x, split[:, half].reshape(-1, w.shape[-1])) for half in (0, 1)]


def convolved(w: Tensor, x: Tensor) -> list[Tensor]:
    return [half.mean(-1) for half in F.conv1d(x[..., None].expand(-1, -1, 4), w, padding=1).chunk(2, 1)]


def by_experts(w: Tensor, x: Tensor) -> list[Tensor]:
    h = torch.bmm(x.expand(2, *x.shape), w)
    return [h[..., ::2].mean(0), h[..., 1::2].mean(0)]


def added(w: Tensor, x: Tensor) -> list[Tensor]:
    h = F.linear(x, w) + torch.zeros(2 * x.shape[-1])
    return [h[:, ::2], h[:, 1::2]]


KINDS: dict[str, Fused] = {
    "every other": rows(lambda w: w[1::2], lambda w, x: ((h := F.linear(x, w))[:, ::2], h[:, 1::2])),
    "every other, by an axis": rows(lambda w: w[1::2], lambda w, x: F.linear(x, w).view(len(x), -1, 2).unbind(-1)),
    "with a bias": rows(lambda w: w[1::2], added),
    "with a curve": rows(lambda w: w[1::2], lambda w, x: ((h := F.silu(F.linear(x, w)))[:, ::2], h[:, 1::2])),
    "in heads": rows(of_heads, lambda w, x: flat(heads(F.linear(x, w)).unbind(2))),
    "in heads, chunked": rows(of_heads, lambda w, x: flat(F.linear(x, w).view(len(x), -1, 2 * HEAD).chunk(2, -1))),
    "in heads, permuted": rows(of_heads, lambda w, x: flat(heads(F.linear(x, w)).permute(2, 0, 1, 3).unbind())),
    "by index": rows(
        lambda w: w[len(w) // 2 :],
        lambda w, x: ((h := F.linear(x, w).view(len(x), 2, -1))[:, 0], h[:, 1]),
    ),
    "transposed": rows(lambda w: w[len(w) // 2 :], lambda w, x: [h.T for h in F.linear(x, w).T.chunk(2)]),
    "product": Fused(
        lambda n: (n, 2 * n), lambda n: n, lambda w: w[:, 1::2], lambda w, x: ((h := x @ w)[:, ::2], h[:, 1::2])
    ),
    "convolution": Fused(lambda n: (2 * n, n, 3), lambda n: 3 * n, lambda w: w[len(w) // 2 :], convolved),
    "experts": Fused(lambda n: (2, n, 2 * n), lambda n: n, lambda w: w[..., 1::2], by_experts),
    "einsum": Fused(
        lambda n: (n, 2, n), lambda n: n, lambda w: w[:, 1], lambda w, x: torch.einsum("bi,iko->bko", x, w).unbind(1)
    ),
    "rows taken": rows(lambda w: w[1::2], lambda w, x: (F.linear(x, w[::2]), F.linear(x, w[1::2]))),
    "rows taken in heads": rows(of_heads, taken_by_heads),
    "columns taken": Fused(
        lambda n: (n, 2 * n), lambda n: n, lambda w: w[:, 1::2], lambda w, x: (x @ w[:, ::2], x @ w[:, 1::2])
    ),
}


class Mid(nn.Module):
    def __init__(self, width: int, fused: Fused) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fused.shape(width)) * fused.fan_in(width) ** -0.5)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fused.both(self.weight, x)
        return torch.tanh(first) + torch.sin(second)


def found(kind: str, init: float = 0.0) -> dict[str, str]:
    """The culprits of an MLP in µP around two fused matrices, the second of which is scaled by a power of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(
            nn.Linear(IN, width), nn.ReLU(), Mid(width, KINDS[kind]), nn.ReLU(), nn.Linear(width, OUT)
        )
        m = width / BASE
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        with torch.no_grad():
            KINDS[kind].second(model[2].weight).mul_(m**init)
        slow = ("2.weight", "4.weight")
        return model, torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 / m if name in slow else 1e-3} for name, p in model.named_parameters()]
        )

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    assert not (verdicts["verdict"] == "not visible").any()
    return told(verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_healthy_ones_are_not_blamed(kind: str):
    assert found(kind) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_whose_init_is_off_is_told_alone(kind: str):
    assert found(kind, init=0.5) == {"2.weight[1]": "init -0.5"}
