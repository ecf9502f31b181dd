"""Whose a scalar between two operations is: told by what was measured before and behind it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_exponents import WIDTHS, table, use
from torch import Tensor, nn

import coordcheck
from coordcheck.analysis.logs import Logs
from coordcheck.analysis.scalars import scalars_of
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.runs.words import Role


def powers(exponent: float) -> dict[int, float]:
    return {width: float(width) ** exponent for width in WIDTHS}


@pytest.mark.parametrize(
    ("taken", "scalar", "undone"),
    [
        (-0.5, 0.5, True),  # a vector of length 1, times the root of its size
        (0.5, -0.5, True),
        (0.0, -0.5, False),  # it changes what was right
        (0.0, 0.0, False),
        (-0.5, 0.0, False),  # a constant undoes no power of the width
        (-0.5, 1.0, False),
    ],
)
def test_a_scalar_in_front_belongs_to_the_matrix_unless_it_undoes_what_stands_there(
    taken: float, scalar: float, undone: bool
):
    one = use(upstreams=powers(scalar))
    logs = Logs(table({("input", 0): taken, ("output", 0): taken + scalar}), [one])
    before = scalars_of(logs, [one]).before[0, 0]
    assert bool(before.any()) is undone
    if undone:
        assert before == pytest.approx([scalar * math.log2(width) for width in WIDTHS])


class Unit(nn.Module):
    """A linear layer of unit rows on unit vectors, and the sqrt(n) behind it that undoes their lengths."""

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(width, width)), width**0.5 * (width / 32) ** power

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)) * self.scale


@pytest.mark.parametrize(
    ("power", "rate", "told"),
    [
        (0.0, 0.0, {}),
        (0.5, 0.0, {"2.weight": ("multiplier", -0.5)}),
        (0.0, 1.0, {"2.weight": ("lr", -1.0)}),
    ],
)
def test_a_root_behind_unit_rows_on_unit_vectors_undoes_their_lengths(power: float, rate: float, told: dict[str, Any]):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), Unit(width, power), nn.ReLU(), nn.Linear(width, 4))
        nn.init.normal_(model[4].weight, std=8.0 / width)
        # an aligned step of Adam turns rows of length sqrt(n) by sqrt(n) times its learning rate
        rates = {"2.weight": 0.1 * (width / 32) ** (rate - 0.5), "4.weight": 0.05 / width}
        return model, torch.optim.Adam([{"params": [p], "lr": rates.get(n, 1e-3)} for n, p in model.named_parameters()])

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(32, 8, generator=generator), torch.randint(4, (32,), generator=generator)
    found = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=(32, 64, 128), seeds=2).verdicts
    culprits = found[found["culprit"]]
    assert {
        row.parameter: (row.cause, getattr(row, "lr_exponent" if row.cause == "lr" else "multiplier_exponent"))
        for row in culprits.itertuples()
    } == told


@pytest.mark.parametrize(("gain", "owned"), [(0.5, True), (0.0, False)])
def test_a_scalar_behind_a_query_is_the_projections_where_it_makes_its_gain_flat(gain: float, owned: bool):
    query = use("q", outwards=powers(-0.5), attends=("sdpa",))
    logits = use("sdpa", Role.ATTENTION, outwards=powers(-1.0))
    rows = table({("input", 0): 0.0, ("output", 0): gain}, name="q")
    logs = Logs(rows, [query, logits])
    found = scalars_of(logs, [query, logits])
    assert bool(found.behind[0].any()) is owned
    assert bool(found.before[1].any()) is owned  # and then no longer the attention's


class Behind(nn.Module):
    """relu(W x) c, and a matrix behind it: the c of entries of size 1 in W, or of those of the next matrix."""

    def __init__(self, width: int, whose: str, form: str, rate: float) -> None:
        super().__init__()
        m, self.form = width / 32, form
        self.inp, self.out = nn.Linear(8, width), nn.Linear(width, 4)
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.scale = m**-0.5
        units = {"first": self.first, "second": self.second}[whose]
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=(32 if layer is units else width) ** -0.5)
        nn.init.normal_(self.out.weight, std=8.0 / width)
        rates = dict.fromkeys(("first.weight", "second.weight", "out.weight"), 1 / m)
        rates[f"{whose}.weight"] *= m**0.5
        rates["first.weight"] *= m**rate
        self.rates = {name: rates.get(name, 1.0) for name, _ in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x))
        if self.form == "twice":
            x = F.relu(F.relu(self.first(x)) * self.scale)
        elif self.form == "leaky, of a sum":
            x = F.leaky_relu(self.first(x) + self.first(x.flip(0)), 0.1).mul(self.scale)
        else:
            x = self.scale * F.relu(self.first(x))
        return self.out(torch.tanh(self.second(x)))


@pytest.mark.parametrize(
    ("whose", "form", "rate", "told"),
    [
        ("first", "plain", 0.0, {}),
        ("first", "twice", 0.0, {}),
        ("first", "leaky, of a sum", 0.0, {}),
        ("second", "plain", 0.0, {}),
        ("second", "leaky, of a sum", 0.0, {}),
        ("first", "plain", 1.0, {"first.weight": ("lr", -1.0)}),
        ("first", "twice", -1.0, {"first.weight": ("lr", 1.0)}),
        ("second", "plain", 1.0, {"first.weight": ("lr", -1.0)}),
    ],
)
def test_a_scalar_behind_a_relu_belongs_to_the_matrix_whose_scale_it_leaves_alike(
    whose: str, form: str, rate: float, told: dict[str, Any]
):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Behind(width, whose, form, rate)
        rates = model.rates
        return model, torch.optim.Adam([{"params": [p], "lr": 1e-3 * rates[n]} for n, p in model.named_parameters()])

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(32, 8, generator=generator), torch.randint(4, (32,), generator=generator)
    report = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=(32, 64, 128), seeds=2)
    assert {row.parameter: (row.cause, row.lr_exponent) for row in report.culprits.itertuples()} == told


def test_a_check_expects_the_scale_of_what_a_scalar_behind_a_relu_flattens():
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Behind(width, "first", "plain", 0.0)
        rates = model.rates
        return model, torch.optim.Adam([{"params": [p], "lr": 1e-3 * rates[n]} for n, p in model.named_parameters()])

    batch = torch.randn(32, 8), torch.randint(4, (32,))
    report = coordcheck.check(build, batch, loss=F.cross_entropy, widths=(32, 64, 128), seeds=2, steps=1)
    assert report.exit_code != 1


def summands(gain: float, other: float) -> list[Any]:
    """Two matrices of which one scaled sum is taken by a third one, of what is flat then."""
    first, second = (use(name, outwards=powers(-0.5), feeds=("next",)) for name in ("first", "second"))
    rows = pd.concat(
        [
            *(table({("input", 0): 0.0, ("output", 0): g}, name=n) for n, g in (("first", gain), ("second", other))),
            table({("input", 0): max(gain, other) - 0.5}, name="next"),
        ]
    )
    uses = [first, second, use("next")]
    found = scalars_of(Logs(rows, uses), uses)
    return [bool(found.behind[number].any()) for number in range(2)]


def test_a_scalar_behind_a_sum_is_of_all_of_its_terms():
    assert summands(0.5, 0.5) == [True, True]
    assert summands(0.0, 0.5) == [True, True]  # one of them is too small
    assert summands(0.0, 0.0) == [False, False]  # it is the next matrix's own


class Fused(nn.Module):
    """Attention on parts of one projection, which is multiplied by a number as a whole, or queries and keys are."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.qkv, self.whole = nn.Linear(8, 24, bias=False), whole

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x) * (0.5 if self.whole else 1.0)
        q, k, v = parts.chunk(3, -1)
        q, k = (q, k) if self.whole else (q * 0.5, k * 0.5)
        return F.scaled_dot_product_attention(q, k, v, scale=1 / 8)


@pytest.mark.parametrize(("whole", "own", "outward", "scale"), [(True, 0.5, 1.0, 1 / 8), (False, 1.0, 0.5, 1 / 32)])
def test_a_scalar_of_values_as_well_is_no_scale_of_the_logits(whole: bool, own: float, outward: float, scale: float):
    with Tracer(model := Fused(whole)) as tracer:
        model(torch.randn(2, 5, 8))
    (attention,), use = tracer.attentions, tracer.uses["qkv.weight", "linear"]
    assert (use.downstream, use.outward) == (own, outward)
    assert (attention.scale, attention.before) == pytest.approx((scale, 8 * scale))


class Attention(nn.Module):
    """One block of attention in µP, with heads of a size that grows."""

    def __init__(self, width: int, normed: str, scale: float) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(8, width), nn.Linear(width, 4)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm = nn.RMSNorm(width // 4) if normed == "rms" else nn.Identity()
        self.normed, self.scale, self.size = normed, scale, width // 4
        nn.init.normal_(self.out.weight, std=8.0 / width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        q, k, v = (use.unflatten(-1, (-1, self.size)).transpose(1, 2) for use in self.qkv(h).chunk(3, -1))
        if self.normed == "unit":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        logits = self.norm(q) @ self.norm(k).transpose(-1, -2) * self.scale
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


def exponent_of_scale(normed: str, power: float) -> float:
    """What the diagnosis says of an attention whose scale is that power of the head size."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Attention(width, normed, (width / 4) ** power)
        slow = [model.qkv.weight, model.out.weight]
        rest = [p for p in model.parameters() if all(p is not q for q in slow)]
        return model, torch.optim.Adam([{"params": slow, "lr": 0.05 / width}, {"params": rest}], lr=1e-3)

    batch = torch.randn(8, 6, 8), torch.randint(4, (8,))
    found = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=(32, 64, 128)).verdicts
    scales = found[found["cause"] == "attention scale"]
    return 0.0 if scales.empty else float(scales["multiplier_exponent"].iloc[0])


@pytest.mark.parametrize(
    ("normed", "power", "expected"),
    [
        ("rms", -1.0, 0.0),
        ("rms", -0.5, -0.5),
        ("unit", 0.0, 0.0),  # queries and keys of length 1: their product is a cosine
        ("unit", -0.5, 0.5),
        ("", -1.0, 0.0),
        ("", -0.5, -0.5),
    ],
)
def test_an_attention_is_judged_by_the_queries_and_keys_that_it_meets(normed: str, power: float, expected: float):
    assert exponent_of_scale(normed, power) == expected
