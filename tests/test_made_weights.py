"""A weight that is computed from parameters before it is used is judged as the matrix that it acts as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, told
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import coordcheck

IN, OUT, BASE = 16, 5, 32
WIDTHS, NARROW = (32, 64, 128), (16, 32, 64)


class Mid(nn.Module):
    """A square matrix that goes through a function before it is used."""

    def __init__(self, width: int, through: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.register_buffer("mask", (torch.rand(width, width) > 0.5).float())
        self.register_buffer("noise", torch.randn(width, width))
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.through(self, self.weight))


class Halves(nn.Module):
    """A square matrix that is put together of two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 2, width) * width**-0.5)
        self.other = nn.Parameter(torch.randn(width // 2, width) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.cat([self.weight, self.other]))


class Merged(nn.Module):
    """A matrix with a low-rank one added to it, whose second factor starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(4, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 2 * self.up @ self.down)


class Half(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.triu(weight) + torch.triu(weight, 1).T


def parametrized(width: int) -> nn.Module:
    layer = nn.Linear(width, width, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    parametrize.register_parametrization(layer, "weight", Half())
    return layer


def pruned(width: int) -> nn.Module:
    layer = nn.Linear(width, width, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


KINDS: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "masked": (lambda width: Mid(width, lambda s, w: w * s.mask), "weight"),
    "noised": (lambda width: Mid(width, lambda s, w: w + 0.1 * len(w) ** -0.5 * s.noise), "weight"),
    "noised anew": (lambda width: Mid(width, lambda s, w: w + 0.1 * len(w) ** -0.5 * torch.randn_like(w)), "weight"),
    "symmetric": (lambda width: Mid(width, lambda s, w: w + w.T), "weight"),
    "turned": (lambda width: Mid(width, lambda s, w: torch.roll(w, 1, 0) - 0.5 * w.flip(0)), "weight"),
    "clamped": (lambda width: Mid(width, lambda s, w: w.clamp(-3, 3)), "weight"),
    "repeated": (lambda width: Mid(width, lambda s, w: w[: len(w) // 2].repeat(2, 1)), "weight"),
    "interleaved": (lambda width: Mid(width, lambda s, w: w[: len(w) // 2].repeat_interleave(2, 0)), "weight"),
    "stacked": (lambda width: Mid(width, lambda s, w: torch.stack([w[::2], w[1::2]]).flatten(0, 1)), "weight"),
    "joined": (Halves, "weight"),
    "merged": (Merged, "weight"),
    "pruned": (pruned, "weight_orig"),
    "parametrized": (parametrized, "parametrizations.weight.original"),
}


def found(
    mid: Callable[[int], nn.Module], *, init: float = 0.0, rate: float = 0.0, name: str = "", probe: int = 0
) -> dict[str, str]:
    """The culprits of an MLP in µP around a layer, one of whose parameters is scaled by powers of the width.

    Args:
        mid: makes the layer.
        init: power of the width on its initial values.
        rate: power of the width on its learning rate.
        name: of the parameter, in the layer.
        probe: its number of examples, where it is given; the models are narrow then, and their inputs have no mean.
    """

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        bend = nn.Tanh() if probe else nn.ReLU()
        model = nn.Sequential(nn.Linear(IN, width), bend, mid(width), bend, nn.Linear(width, OUT))
        m = width / BASE
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        groups = []
        for path, parameter in model.named_parameters():
            narrow = path in ("2.up", "2.parametrizations.weight.original0")
            slow = parameter.dim() > 1 and not path.startswith("0.") and not narrow
            power = rate if path == f"2.{name}" else 0.0
            groups.append({"params": [parameter], "lr": 1e-3 * m ** (power - slow)})
            if path == f"2.{name}" and init:
                parameter.data *= m**init
        return model, torch.optim.Adam(groups)

    batch = pair_batch(examples=probe or 32, inputs=IN, classes=OUT)
    options = {"widths": NARROW, "probe": batch} if probe else {"widths": WIDTHS}
    return told(coordcheck.diagnose(build, batch, loss=F.cross_entropy, seeds=2, **options).verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_one_is_not_blamed(kind: str):
    assert found(KINDS[kind][0]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_its_init_is_found(kind: str):
    mid, name = KINDS[kind]
    assert found(mid, init=0.5, name=name) == {f"2.{name}": "init -0.5"}


@pytest.mark.parametrize("kind", ["masked", "noised", "joined", "merged", "pruned", "parametrized"])
def test_its_learning_rate_is_found(kind: str):
    mid, name = KINDS[kind]
    assert found(mid, rate=1.0, name=name) == {f"2.{name}": "lr -1"}


def normed(norm: Callable[..., nn.Module], **options: Any) -> Callable[[int], nn.Module]:
    def make(width: int) -> nn.Module:
        layer = nn.Linear(width, width, bias=False)
        nn.init.normal_(layer.weight, std=width**-0.5)
        return norm(layer, **options)

    return make


def test_the_size_of_a_normed_weight_is_in_its_lengths():
    layer = normed(parametrizations.weight_norm)
    lengths, directions = (f"parametrizations.weight.original{number}" for number in (0, 1))
    assert found(layer) == {}
    # longer rows move further when they are turned, and no longer once they are right
    assert found(layer, init=0.5, name=lengths) == {f"2.{lengths}": "init -0.5"}
    assert found(layer, init=-0.5, name=lengths) == {f"2.{lengths}": "init 0.5"}
    assert found(layer, init=1.0, name=directions) == {f"2.{directions}": "lr 1"}
    assert found(layer, rate=1.0, name=directions) == {f"2.{directions}": "lr -1"}


def test_a_rate_of_directions_beside_lengths_that_are_off_is_told_as_once_they_are_right():
    lengths, directions = (f"2.parametrizations.weight.original{number}" for number in (0, 1))

    def longer(width: int) -> nn.Module:
        layer = normed(parametrizations.weight_norm)(width)
        layer.parametrizations.weight.original0.data *= (width / BASE) ** 0.5
        return layer

    mends = {lengths: "init -0.5", directions: "lr -1"}
    assert found(longer, rate=1.0, name=directions.removeprefix("2.")) == mends


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_directions_whose_updates_are_signs_are_judged_as_plain_ones(rate: float):
    name = "parametrizations.weight.original1"  # in narrow models many examples hide the alignment of signs
    mends = {f"2.{name}": "lr -1"} if rate else {}
    assert found(normed(parametrizations.weight_norm), rate=rate, name=name, probe=2048) == mends


def test_a_weight_without_a_size_of_its_own_has_a_multiplier():
    layer = normed(parametrizations.spectral_norm, n_power_iterations=20)
    name = "parametrizations.weight.original"
    assert found(layer) == {}
    assert found(lambda width: Times(layer(width), (width / BASE) ** 0.5)) == {f"2.layer.{name}": "multiplier -0.5"}


class Times(nn.Module):
    def __init__(self, layer: nn.Module, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm]
)
def test_what_makes_a_weight_is_no_layer(norm: Any):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(norm(nn.Linear(IN, width)), nn.ReLU(), nn.Linear(width, OUT))
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    batch = torch.randn(8, IN), torch.randint(OUT, (8,))
    report = coordcheck.check(build, batch, loss=F.cross_entropy, widths=(16, 32, 64), seeds=1, probe=None)
    assert {layer.partition("/")[0] for layer in report.verdicts["layer"]} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("name", "rate", "culprit"), [("up", -1.0, "lr 1"), ("up", 1.0, "lr -1"), ("down", 1.0, "lr -1")]
)
def test_a_factor_that_starts_at_zero_is_alone_to_blame_for_what_it_multiplies(name: str, rate: float, culprit: str):
    assert found(Merged, rate=rate, name=name) == {f"2.{name}": culprit}


def test_of_two_factors_that_are_off_both_are_told_by_their_own():
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(IN, width), nn.ReLU(), Merged(width), nn.ReLU(), nn.Linear(width, OUT))
        m = width / BASE
        nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
        powers = {"2.weight": -1.0, "4.weight": -1.0, "2.up": -1.0, "2.down": -2.0}
        groups = [{"params": [p], "lr": 1e-3 * m ** powers.get(name, 0.0)} for name, p in model.named_parameters()]
        return model, torch.optim.Adam(groups)

    batch = pair_batch(examples=32, inputs=IN, classes=OUT)
    verdicts = coordcheck.diagnose(build, batch, loss=F.cross_entropy, widths=WIDTHS, seeds=2).verdicts
    assert told(verdicts) == {"2.up": "lr 1", "2.down": "lr 1"}
