"""Complex parameters, and complex weights of real ones, are judged as real ones are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, told
from torch import Tensor, nn

import coordcheck
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.updates.norms import spectral_norm

IN, OUT, BASE = 16, 5, 32
WIDTHS = (32, 64, 128)


def pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def back(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(-2)


def drawn(*shape: int, std: float, dtype: torch.dtype = torch.complex64) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype) * std)


class Mid(nn.Module):
    """What one complex weight does between two layers: (batch, n) -> (batch, n)."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        half, real, self.kind = width // 2, torch.float32, kind
        self.shapes = {
            "matrix": (half, half),
            "product": (half, half),
            "modes": (width, width, 2),
            "filter": (half + 1,),
            "real filter": (half + 1, 2),
            "real and imaginary": (2, half, half),
        }
        std = {"modes": width**-0.5, "filter": 1.0, "real filter": 1.0}.get(kind, half**-0.5)
        self.weight = drawn(*self.shapes[kind], std=std, dtype=real if "real" in kind else torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.kind == "matrix":
            return back(F.linear(pairs(x), weight))
        if self.kind == "product":
            return back(pairs(x) @ weight)
        if self.kind == "real and imaginary":
            return back(pairs(x) @ torch.complex(weight[0], weight[1]))
        if self.kind == "modes":  # of a signal of two points on each channel
            spectrum = torch.fft.rfft(torch.stack([x, x.roll(1, -1)], -1), norm="ortho")
            return torch.fft.irfft(torch.einsum("bim,iom->bom", spectrum, weight), n=2, norm="ortho").mean(-1) * 2**0.5
        weight = torch.view_as_complex(weight) if self.kind == "real filter" else weight
        return torch.fft.irfft(torch.fft.rfft(x, norm="ortho") * weight, n=x.shape[-1], norm="ortho")


KINDS = ("matrix", "product", "modes", "filter", "real filter", "real and imaginary")
FILTERS = ("filter", "real filter")


def found(kind: str, *, init: float = 0.0, rate: float = 0.0, sgd: bool = False) -> dict[str, str]:
    """The culprits of an MLP in µP around a complex weight that is scaled by powers of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = nn.Sequential(nn.Linear(IN, width), nn.ReLU(), Mid(width, kind), nn.ReLU()), width / BASE
        model.append(nn.Linear(width, OUT))
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        with torch.no_grad():
            model[2].weight.mul_(m**init)
        mid = float(sgd) if kind in FILTERS else float(sgd) - 1
        first = float(sgd)
        powers = {"0.weight": first, "0.bias": first, "2.weight": mid + rate, "4.weight": -1.0, "4.bias": 0.0}
        groups = [{"params": [p], "lr": 1e-3 * m ** powers[name]} for name, p in model.named_parameters()]
        return model, torch.optim.SGD(groups, lr=1e-3) if sgd else torch.optim.Adam(groups, lr=1e-3)

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    role = verdicts.set_index("layer").loc["2.weight", "role"]
    assert role == ("vector" if kind in FILTERS else "hidden")
    return told(verdicts)


@pytest.mark.parametrize("sgd", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_one_is_not_blamed(kind: str, sgd: bool):
    assert found(kind, sgd=sgd) == {}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FILTERS])
def test_its_init_is_found(kind: str):
    assert found(kind, init=0.5) == {"2.weight": "init -0.5"}


@pytest.mark.parametrize(("sgd", "rate"), [(False, 1.0), (True, -1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_its_learning_rate_is_found(kind: str, sgd: bool, rate: float):
    rate = -1.0 if kind in FILTERS else rate
    assert found(kind, rate=rate, sgd=sgd) == {"2.weight": f"lr {-rate:g}"}


def test_the_largest_singular_value_of_a_complex_matrix():
    matrix = torch.randn(12, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    matrix = matrix + 6 * torch.outer(matrix[:, 0], matrix[0].conj())
    assert float(spectral_norm(matrix)) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-2)


def test_a_table_of_rotary_positions_keeps_what_a_matrix_gave():
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.register_buffer("turns", torch.polar(torch.ones(5, 4), torch.rand(5, 4)))

        def forward(self, x: Tensor) -> Tensor:
            query, key = (back(pairs(part(x)) * self.turns) for part in (self.query, self.key))
            return (query @ key.mT / 8).softmax(-1) @ x

    with Tracer(model := Rotated()) as tracer:
        model(torch.randn(3, 5, 8))
    (attention,) = tracer.attentions
    assert attention.scale == pytest.approx(1 / 8)
    assert all(attention in use.feeds for use in tracer.uses.values())
