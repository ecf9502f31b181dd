"""What attention takes of parameters alone are activations of an input that is the same for all data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coordcheck
from coordcheck.recording.graph.tracer import Tracer

IN, OUT, BASE, HEAD, STORED = 8, 5, 16, 8, 6
WIDTHS = (16, 32, 64)


class Pooling(nn.Module):
    """Sequences that read keys and values of stored rows."""

    def __init__(self, n: int, kind: str, written: bool) -> None:
        super().__init__()
        self.into, self.kind, self.written = nn.Linear(IN, n), kind, written
        self.q, self.k, self.v, self.out = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.norm, self.readout = nn.LayerNorm(n), nn.Linear(n, OUT)
        if kind == "buffer":
            self.register_buffer("stored", torch.randn(STORED, n))
        else:
            self.stored = nn.Parameter(torch.randn(STORED, n))
        if kind == "keys":
            self.others = nn.Parameter(torch.randn(STORED, n))

    def forward(self, x: Tensor) -> Tensor:
        x, stored = F.layer_norm(self.into(x).relu(), (self.out.in_features,)), self.stored
        if self.kind == "expanded":
            stored = stored.expand(len(x), -1, -1)
        elif self.kind == "normed":
            stored = self.norm(stored)
        given = (stored, self.others) if self.kind == "keys" else (self.k(stored), self.v(stored))
        k, v = (t.unflatten(-1, (-1, HEAD)).transpose(-2, -3).expand(len(x), -1, -1, -1) for t in given)
        q = self.q(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
        y = (q @ k.mT * HEAD**-0.5).softmax(-1) @ v if self.written else F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.readout(x.mean(1))


def verdicts(kind: str, name: str = "", init: float = 0.0, rate: float = 0.0, written: bool = False) -> dict[str, str]:
    """Every parameter that is used -> its verdict, and what it is to be multiplied by.

    Args:
        kind: of the stored rows.
        name: the parameter whose initial values or learning rate are scaled by a power of the width.
        init: that power for its initial values.
        rate: that of its learning rate.
        written: whether the attention is written out.
    """

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = Pooling(width, kind, written), width / BASE
        groups = []
        for path, parameter in model.named_parameters():
            hidden = path in ("q.weight", "k.weight", "v.weight", "out.weight")
            if hidden or path == "readout.weight":
                nn.init.normal_(parameter, std=width**-0.5 * (1 if hidden else m**-0.5))
            if path == name:
                parameter.data *= m**init
            power = rate if path == name else 0.0
            groups.append({"params": [parameter], "lr": 1e-3 * m ** (power - (hidden or path == "readout.weight"))})
        return model, torch.optim.Adam(groups)

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 4, IN, generator=generator), torch.randint(OUT, (16,), generator=generator)
    table = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    table = table[table["parameter"].notna()]
    found = {}
    for row in table.itertuples():
        if row.culprit:
            found[row.parameter] = f"{row.cause} {row.init_exponent or row.multiplier_exponent or row.lr_exponent:g}"
        elif row.verdict != "ok":
            found[row.parameter] = row.verdict
    return found


UNUSED = {
    "keys": {"k.weight", "v.weight", "norm.weight", "norm.bias"},
    "normed": set[str](),
}


def spare(kind: str) -> dict[str, str]:
    """The parameters that a kind does not use."""
    return dict.fromkeys(UNUSED.get(kind, {"norm.weight", "norm.bias"}), "not visible")


@pytest.mark.parametrize("kind", ["plain", "expanded", "normed", "buffer", "keys"])
def test_all_of_a_healthy_one_is_ok(kind: str):
    assert verdicts(kind) == spare(kind)


@pytest.mark.parametrize(
    ("kind", "name", "init", "rate", "told"),
    [
        ("plain", "stored", 0.0, -0.5, "lr 0.5"),
        ("expanded", "stored", 0.5, 0.0, "init -0.5"),
        ("expanded", "stored", -0.5, 0.0, "init 0.5"),
        ("plain", "k.weight", 0.0, 1.0, "lr -1"),
        ("normed", "v.weight", 0.5, 0.0, "init -0.5"),
        ("normed", "norm.weight", 0.0, 0.5, "lr -0.5"),
        ("buffer", "k.weight", 0.0, 0.5, "lr -0.5"),
        ("keys", "others", 0.0, 0.5, "lr -0.5"),
    ],
)
def test_a_fault_is_found(kind: str, name: str, init: float, rate: float, told: str):
    assert verdicts(kind, name, init, rate) == {**spare(kind), name: told}


@pytest.mark.parametrize("kind", ["plain", "expanded", "normed", "buffer"])
def test_an_attention_that_is_written_out_takes_them_as_well(kind: str):
    assert verdicts(kind, written=True) == spare(kind)
    told = {"k.weight": "lr -0.5"}
    assert verdicts(kind, "k.weight", rate=0.5, written=True) == {**spare(kind), **told}


class OneHead(nn.Module):
    """Few trained queries on the sequence without heads, through a softmax or gates."""

    def __init__(self, n: int, gates: str, scale: float) -> None:
        super().__init__()
        self.into, self.readout, self.gates, self.scale = nn.Linear(IN, n), nn.Linear(n, OUT), gates, scale
        self.stored = nn.Parameter(torch.randn(STORED, n))
        self.q, self.k, self.v = (nn.Linear(n, n, bias=False) for _ in range(3))
        for layer in (self.q, self.k, self.v, self.readout):
            nn.init.normal_(layer.weight, std=n**-0.5)
        with torch.no_grad():
            self.readout.weight.mul_((BASE / n) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(self.into(x).relu(), (self.v.in_features,))
        logits = self.q(self.stored) @ self.k(x).mT * self.scale
        if self.gates == "softmax":
            mixed = logits.softmax(-1)
        elif self.gates == "sigmoid":
            mixed = logits.sigmoid()
        else:
            mixed = (5 * torch.tanh(logits / 5)).sigmoid()
        return self.readout((mixed @ self.v(x)).mean(1))


@pytest.mark.parametrize("gates", ["softmax", "sigmoid", "capped"])
@pytest.mark.parametrize(
    ("power", "name", "rate", "told"),
    [
        (-1.0, "", 0.0, {}),
        (-0.5, "", 0.0, {"attention scale": -0.5}),
        (-1.0, "stored", -1.0, {"lr": 1.0}),
        (-1.0, "q.weight", 1.0, {"lr": -1.0}),
    ],
)
def test_queries_of_trained_rows_without_heads(
    gates: str, power: float, name: str, rate: float, told: dict[str, float]
):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        m = width / BASE
        model = OneHead(width, gates, 4 / BASE * m**power)
        slow = ("q.weight", "k.weight", "v.weight", "readout.weight")
        rates = {p: m ** (rate * (p == name) - (p in slow)) for p, _ in model.named_parameters()}
        return model, torch.optim.Adam([{"params": [p], "lr": 1e-3 * rates[n]} for n, p in model.named_parameters()])

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 4, IN, generator=generator), torch.randint(OUT, (16,), generator=generator)
    found = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).culprits
    assert dict(zip(found["cause"], found["exponent"], strict=True)) == told
    assert not name or list(found["parameter"]) == [name]


def test_rows_of_a_weight_that_a_layer_makes_of_trained_rows_are_no_tokens():
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.make = nn.Parameter(torch.randn(12, 3)), nn.Linear(3, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.make(self.rows) @ x

    with Tracer(model := Made()) as tracer:
        model(torch.randn(12, 4))
    assert {(use.parameter, use.fans) for use in tracer.uses.values()} == {
        ("rows", (12, 12)),
        ("make.weight", (12, 12)),
    }
