"""Optimizers whose first updates are none yet, such as those clipped against a second moment of zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import recorded
from torch import Tensor, nn

import coordcheck
from coordcheck.recording.updates import own_updates

BASE, WIDTHS, SEEDS = 32, (32, 64, 128), 2
GENERATOR = torch.Generator().manual_seed(0)
BATCH = torch.randn(16, 8, generator=GENERATOR), torch.randint(5, (16,), generator=GENERATOR)
Size = Callable[[int, Tensor, Any], float]


class Scaled(torch.optim.Optimizer):
    """Signs of gradients, whose update number t is multiplied by size(t, gradient, second moment before it)."""

    def __init__(self, groups: Any, size: Size) -> None:
        super().__init__(groups, {"lr": 1e-3})
        self.size = size

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                number, second = state.get("number", 0) + 1, state.get("second", torch.zeros_like(p))
                p -= group["lr"] * self.size(number, p.grad, second) * p.grad.sign()
                state.update(number=number, second=0.1 * second + 0.9 * p.grad**2)


def clipped(number: int, gradient: Tensor, second: Tensor) -> float:
    """As StableAdamW clips: a first update of eps / |g|, which grows with the width where gradients fall."""
    return 1 / max(float((gradient**2 / second.clamp(min=1e-14)).mean().sqrt()), 1.0)


SIZES: dict[str, tuple[Size, int]] = {
    "clipped": (clipped, 2),
    "one that is tiny": (lambda number, *_: 1e-6 if number < 2 else 1.0, 2),
    "two that are tiny": (lambda number, *_: 1e-9 if number < 2 else 1e-5 if number < 3 else 1.0, 3),
    "a warm-up": (lambda number, *_: number / 100, 1),
    "as always": (lambda number, *_: 1.0, 1),
}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(8, width, bias=False), nn.Linear(width, width, bias=False)
        self.readout = nn.Linear(width, 5, bias=False)
        nn.init.normal_(self.readout.weight, std=BASE**0.5 / width)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.hidden(torch.tanh(self.first(x)))))


def built(size: Size, healthy: bool) -> Callable[[int], Any]:
    """In µP, or with a hidden matrix that learns as fast at all widths."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, slow = Net(width), 1e-3 * BASE / width
        rates = {"first.weight": 1e-3, "hidden.weight": slow if healthy else 1e-3, "readout.weight": slow}
        return model, Scaled([{"params": [p], "lr": rates[n]} for n, p in model.named_parameters()], size)

    return build


def blamed(report: coordcheck.Report) -> dict[str, tuple[str, float]]:
    return {row.layer: (row.cause, row.exponent) for row in report.culprits.itertuples()}


def diagnosed(build: Callable[[int], Any]) -> coordcheck.Report:
    return coordcheck.diagnose(build, BATCH, loss=F.cross_entropy, widths=WIDTHS, seeds=SEEDS)


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("kind", SIZES)
def test_the_first_update_that_is_one_is_judged(kind: str, healthy: bool) -> None:
    size, step = SIZES[kind]
    report = diagnosed(built(size, healthy))
    assert blamed(report) == ({} if healthy else {"hidden.weight": ("lr", -1)})
    assert set(report.parameters["step"]) == {step}
    assert report.exit_code == (0 if healthy else 1)


@pytest.mark.parametrize("healthy", [True, False])
def test_so_it_is_in_a_loop(healthy: bool, tmp_path: Path) -> None:
    report = recorded(built(clipped, healthy), BATCH, tmp_path, WIDTHS, SEEDS, updates=5)
    assert blamed(report) == ({} if healthy else {"hidden.weight": ("lr", -1)})
    assert set(report.parameters["step"]) == {2}


def test_it_would_be_the_very_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests can fail."""
    monkeypatch.setattr(own_updates.OwnUpdates, "waiting", lambda self, steps: False)
    assert blamed(diagnosed(built(clipped, True)))
