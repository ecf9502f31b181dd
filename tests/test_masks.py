"""Masked logits that a module returns: the mask is left out of their scale, and what overflows is not taken for one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck import Report, check, diagnose
from coordcheck.analysis.verdicts import Verdict
from coordcheck.recording import scales
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.masks import mask_of

SINGLE = torch.finfo(torch.float32).max
TOKENS = torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(0))
BATCH = TOKENS[:, :-1], TOKENS[:, 1:]
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "masked"),
    [
        ([1.0, -2.0, -INF], [0, 0, 1]),
        ([1.0, -2.0, -SINGLE], [0, 0, 1]),
        ([1.0, -2.0, -SINGLE / 2], [0, 0, 1]),
        ([1.0, -2.0, -1e9 + 64], [0, 0, 1]),
        ([1.0, -2.0, -1e9, -INF, -2e9, -SINGLE], [0, 0, 1, 1, 1, 1]),
        ([60.0, -1e4 + 3], [0, 1]),
        ([1e4, -2e4, -INF], [0, 0, 1]),
        ([0.0, -INF], [0, 1]),
    ],
)
def test_what_is_a_mask(values, masked):
    assert mask_of(np.array(values, dtype=np.float32), SINGLE).tolist() == [bool(one) for one in masked]


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([1.0, -2.0], SINGLE),
        ([NAN, -INF, 1.0], SINGLE),
        ([INF, -INF, 1.0], SINGLE),
        ([INF, 1.0], SINGLE),
        ([-INF, -INF], SINGLE),  # and nothing beside it
        ([-INF, -1e30, -1e18, 1.0], SINGLE),  # what overflows is beside what nearly does
        ([-INF, 3e4, 1.0], 65504.0),
        ([-INF, -3e4, -500.0, 1.0], 65504.0),
        ([-1e9, 3e8, 1.0], SINGLE),  # what diverges leaves no gap
        ([-2e4, -300.0, 1.0], SINGLE),
        ([-1e3, 0.1], SINGLE),
    ],
)
def test_what_is_none(values, largest):
    assert mask_of(np.array(values, dtype=np.float32), largest) is None


def recorded(*outputs: Tensor) -> dict[tuple[int, str], tuple[float | None, str]]:
    """The rows of a module that returns one output after the other, by step and quantity."""

    class Given(nn.Module):
        def forward(self, step: int) -> Tensor:
            return outputs[step]

    model = Given()
    with ActivationRecorder(model, fixed_batch=True) as recorder:
        for step in range(len(outputs)):
            with recorder.window(step):
                model(step)
        return {(row.step, row.quantity.value): (row.value, row.status.value) for row in recorder.rows}


@pytest.mark.parametrize("mask", [-INF, -SINGLE, -1e9, -1e4])
@pytest.mark.parametrize("kept", [set(), {"cpu"}], ids=["on a device", "in memory"])
def test_the_scales_are_those_of_what_is_not_masked(mask, kept, monkeypatch):
    monkeypatch.setattr(scales, "IN_MEMORY", kept)
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(4, 32, 32, generator=generator) for _ in range(2))
    seen = torch.ones(32, 32).tril().bool()
    rows = recorded(*(x.masked_fill(~seen, mask) for x in (before, after)))
    left = [x[:, seen] for x in (before, after, after - before)]
    assert rows[0, "activation"][0] == pytest.approx(left[0].square().mean().sqrt().item(), rel=1e-5)
    assert rows[1, "mean_abs"][0] == pytest.approx(left[1].abs().mean().item(), rel=1e-5)
    assert rows[1, "change"][0] == pytest.approx(left[2].square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("kept", [set(), {"cpu"}], ids=["on a device", "in memory"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_beside_a_mask_is_told(bad, kept, monkeypatch):
    monkeypatch.setattr(scales, "IN_MEMORY", kept)
    x = torch.randn(8, 8).masked_fill(~torch.ones(8, 8).tril().bool(), -INF)
    rows = recorded(x, torch.full_like(x, bad).where(torch.eye(8).bool(), x))
    assert rows[0, "activation"][1] == "ok"
    assert rows[1, "activation"][1] == ("nan" if math.isnan(bad) else "inf")


class Attend(nn.Module):
    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        logits = q @ k.mT / q.shape[-1]
        logits = self.mask(logits, torch.ones(logits.shape[-2:]).triu(1).bool())
        return logits.softmax(-1) @ v, logits


class Logits(nn.Module):
    """A module that only masks."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, logits: Tensor) -> Tensor:
        return self.mask(logits, torch.ones(logits.shape[-2:]).triu(1).bool())


class Net(nn.Module):
    def __init__(self, width: int, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.emb, self.qkv = nn.Embedding(50, width), nn.Linear(width, 3 * width, bias=False)
        self.attend, self.logits = Attend(mask), Logits(mask)
        self.out = nn.Linear(width, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.emb(ids)
        q, k, v = (x.unflatten(-1, (-1, 16)).transpose(1, 2) for x in self.qkv(h).chunk(3, -1))
        h = h + self.attend(q, k, v)[0].transpose(1, 2).flatten(2)
        return self.out(h + self.logits(h @ h.mT / h.shape[-1]).softmax(-1) @ h)


def built(mask: Callable[[Tensor, Tensor], Tensor], *, scale: float = -0.5, base: int = 32) -> Callable[[int], object]:
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Net(width, mask)
        nn.init.normal_(model.qkv.weight, std=width**scale)
        nn.init.normal_(model.out.weight, std=base**0.5 / width)
        slow = {"params": [model.qkv.weight, model.out.weight], "lr": 1e-2 * base / width}
        return model, torch.optim.Adam([{"params": [model.emb.weight]}, slow], lr=1e-2)

    return build


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


MASKS = {
    "minus infinity": lambda x, hidden: x.masked_fill(hidden, -INF),
    "the lowest number": lambda x, hidden: x.masked_fill(hidden, torch.finfo(x.dtype).min),
    "added": lambda x, hidden: x + hidden * -1e9,
    "added as BERT does": lambda x, hidden: x + hidden * -1e4,
}


def checked(build: Callable[[int], object]) -> Report:
    return check(build, BATCH, loss=loss, widths=(32, 64, 128), seeds=2, steps=2)


@pytest.mark.parametrize("name", MASKS)
def test_a_model_that_returns_masked_logits_is_judged_without_them(name: str) -> None:
    report = checked(built(MASKS[name]))
    assert not [word for word in report.layers["verdict"] if Verdict(word).violated]
    assert report.status["build"] is not Verdict.NOT_FINITE
    found = diagnose(built(MASKS[name]), BATCH, loss=loss, widths=(32, 64, 128), seeds=2)
    assert not found.culprits.size
    assert Verdict.NOT_FINITE.value not in set(found.verdicts["verdict"])


@pytest.mark.parametrize("name", MASKS)
def test_logits_that_grow_beside_a_mask_are_seen(name: str) -> None:
    layers = checked(built(MASKS[name], scale=0.0)).layers.set_index("layer")
    assert layers.loc["attend:out[1]", "verdict"] == Verdict.TOO_LARGE.value


@pytest.mark.parametrize(
    "broken",
    [
        lambda x, hidden: (x * 1e38).masked_fill(hidden, -INF),
        lambda x, hidden: (x / x.detach().mul(0)).masked_fill(hidden, -INF),
        lambda x, hidden: x.masked_fill(hidden | hidden.mT, -INF).masked_fill(~hidden, -INF),
    ],
)
def test_overflow_and_nan_stay_what_they_are(broken):
    report = checked(built(broken))
    assert report.status["build"] is Verdict.NOT_FINITE
    assert report.exit_code == 1
