"""What attention takes of parameters alone are activations of an input that is the same for all data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coordcheck

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
