"""Functions of two activations and a weight, and experts that some examples reach and others do not."""

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
from coordcheck.recording.updates.replays import FunctionReplay

IN, OUT, BASE = 16, 5, 16
WIDTHS = (16, 32, 64)


class Pair(nn.Module):
    """Two layers whose outputs a weight multiplies with one another."""

    def __init__(self, width: int, out: int, through: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(IN, width), nn.Linear(IN, width)
        self.weight = nn.Parameter(torch.randn(out, width, width) / width)
        self.readout = nn.Linear(out, OUT) if out == width else nn.Identity()
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.relu(self.through(torch.tanh(self.one(x)), torch.tanh(self.other(x)), self.weight)))


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bilinear": F.bilinear,
    "einsum": lambda x, z, w: torch.einsum("bi,oij,bj->bo", x, w, z),
    "einsum, weight first": lambda x, z, w: torch.einsum("oij,bi,bj->bo", w, x, z),
}


def found(through: Any, *, init: float = 0.0, rate: float = 0.0, readout: bool = False) -> dict[str, str]:
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = Pair(width, OUT if readout else width, through), width / BASE
        model.weight.data *= m ** (init - 0.5 * readout)
        if not readout:
            nn.init.normal_(model.readout.weight, std=BASE**0.5 / width)
        powers = {"weight": rate - 2, "readout.weight": -1.0}
        return model, torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 * m ** powers.get(name, 0.0)} for name, p in model.named_parameters()]
        )

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    assert not (verdicts["verdict"] == "not visible").any()
    return told(verdicts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readout", [False, True])
def test_a_weight_of_two_inputs_sums_over_both(kind: str, readout: bool):
    assert found(KINDS[kind], readout=readout) == {}
    assert found(KINDS[kind], readout=readout, init=0.5) == {"weight": "init -0.5"}
    assert found(KINDS[kind], readout=readout, rate=1.0) == {"weight": "lr -1"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_input_is_the_product_of_both(kind: str):
    model = Pair(8, 6, KINDS[kind])
    with Tracer(model) as tracer:
        model.through(x := torch.randn(4, 8), z := torch.randn(4, 8), model.weight)
    use = next(use for (name, _), use in tracer.uses.items() if name == "weight")
    assert use.fans == (64, 6)
    replay = FunctionReplay(use, {"weight": model.weight.detach()})
    expected = x.square().mean().sqrt() * z.square().mean().sqrt()
    assert float(replay.input_scale) == pytest.approx(float(expected), rel=1e-5)


# Experts


class Experts(nn.Module):
    """Matrices of which each example takes the one that its first number says."""

    def __init__(self, width: int, taken: str, used: int = 4) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(IN, width), nn.Linear(width, OUT)
        self.stack = nn.Parameter(torch.randn(4, width, width) * width**-0.5)
        self.taken, self.used = taken, used

    def forward(self, x: Tensor) -> Tensor:
        h, chosen = F.relu(self.first(x)), torch.arange(len(x)) % self.used
        out = torch.zeros_like(h)
        if self.taken == "bmm":
            given = F.one_hot(chosen, 4).T.float()[..., None] * h  # (experts, examples, width)
            return self.readout(F.relu(torch.bmm(given, self.stack).sum(0)))
        for expert in range(4):
            places = torch.nonzero(chosen == expert).flatten()
            if len(places) or self.taken == "all":
                out = out.index_copy(0, places, F.linear(h[places], self.stack[expert]))
        return self.readout(F.relu(out))


@pytest.mark.parametrize("taken", ["some", "all", "bmm"])
@pytest.mark.parametrize("wrong", [None, 1])
@pytest.mark.parametrize("without", [(), (64,), (16, 32, 64)], ids=lambda widths: f"without tokens at {widths}")
def test_experts_without_examples_are_told_or_left_out(taken: str, wrong: int | None, without: tuple[int, ...]):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = Experts(width, taken, 3 if width in without else 4), width / BASE
        nn.init.normal_(model.readout.weight, std=BASE**0.5 / width)
        if wrong is not None:
            model.stack.data[wrong] *= m**0.5
        slow = ("stack", "readout.weight")
        return model, torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 / m if name in slow else 1e-3} for name, p in model.named_parameters()]
        )

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    culprits = verdicts[verdicts["culprit"]]
    blamed = {row.layer: (row.cause, row.init_exponent) for row in culprits.itertuples()}
    assert blamed == ({} if wrong is None else {"stack[1]": ("init", -0.5)})
