"""Biases that are most of what their layer gives at t=0, and those that are small beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import recorded
from torch import Tensor, nn

from coordcheck import Report, check

BASE, WIDTHS, SEEDS = 32, (32, 64, 128), 2
GENERATOR = torch.Generator().manual_seed(0)
BATCH = torch.randn(64, 8, generator=GENERATOR), torch.randint(5, (64,), generator=GENERATOR)


class Added(nn.Linear):
    """A bias that the layer adds by itself, after it averaged over the examples near by."""

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.weight.T
        return (h + h.roll(1, 0)) * 2**-0.5 + self.bias


class Addmm(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.T)


class Convolution(nn.Conv1d):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., None])[..., 0]


class Table(nn.Linear):
    """A layer whose scale a table makes that is not trained: to blame is neither its matrix nor its bias."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out)
        self.table = nn.Buffer(torch.eye(fan_out) * (BASE / fan_out) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.table


class Net(nn.Module):
    """In µP: what arrives at the hidden matrix is of the scale `size`, its bias of PyTorch's own, n ** -1/2."""

    def __init__(self, width: int, layer: Callable[[int, int], nn.Linear], size: float) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(8, width, bias=False), layer(width, width)
        self.readout = nn.Linear(width, 5)
        nn.init.normal_(self.first.weight, std=size * 8**-0.5)
        nn.init.normal_(self.hidden.weight, std=0.6 * width**-0.5)
        nn.init.uniform_(self.hidden.bias, -(width**-0.5), width**-0.5)
        nn.init.normal_(self.readout.weight, std=BASE**0.5 / width)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.layer_norm(self.hidden(self.first(x)), (self.readout.in_features,)))


Change = Callable[[Net, float], None]


def built(layer: Callable[[int, int], nn.Linear], size: float, change: Change | None = None) -> Callable[[int], object]:
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = Net(width, layer, size), width / BASE
        if change is not None:
            with torch.no_grad():
                change(model, m)
        slow = [model.hidden.weight, model.readout.weight]
        rest = [p for p in model.parameters() if all(p is not one for one in slow)]
        return model, torch.optim.Adam([{"params": rest}, {"params": slow, "lr": 1e-3 / m}], lr=1e-3)

    return build


def checked(build: Callable[[int], object], seeds: int = SEEDS) -> Report:
    return check(build, BATCH, loss=F.cross_entropy, widths=WIDTHS, seeds=seeds, steps=2)


def blamed(report: Report) -> dict[str, tuple[str, str, float]]:
    return {row.layer: (row.verdict, row.cause, row.exponent) for row in report.culprits.itertuples()}


LAYERS = [nn.Linear, Added, Addmm, Convolution]
SMALL, LARGE = 0.05, 2.0  # beside which a bias of 0.1 is most of an output, and little of it


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bias_that_is_most_of_an_output_is_to_blame_for_its_scale(layer: Callable[[int, int], nn.Linear]) -> None:
    report = checked(built(layer, SMALL))
    assert blamed(report) == {"hidden.bias": ("initialised too small", "init", 0.5)}
    layers = report.layers.set_index("layer")
    assert layers.loc["hidden", ["verdict", "cause"]].tolist() == ["initialised too small", "own: hidden.bias"]
    assert "of the mean square of what hidden gives at t=0" in report.culprits["explanation"].item()
    assert not any("cause not found" in note for note in report.notes)
    assert report.exit_code == 1


@pytest.mark.parametrize(("bend", "found"), [(1.3, {"hidden.bias": ("initialised too small", "init", 0.5)}), (2.2, {})])
def test_its_own_power_need_not_be_exact(bend: float, found: dict[str, tuple[str, str, float]]) -> None:
    """A diagnosis sees two of the six seeds: what is certain of the output may not be of the bias."""
    bent = built(nn.Linear, SMALL, lambda model, m: model.hidden.bias.mul_(bend if m == 2 else 1))
    assert blamed(checked(bent, 6)) == found


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_right_once_its_remedy_is_obeyed(layer: Callable[[int, int], nn.Linear]) -> None:
    report = checked(built(layer, SMALL, lambda model, m: model.hidden.bias.mul_(m**0.5)))
    assert blamed(report) == {}
    assert report.layers.set_index("layer").loc["hidden", "verdict"] == "ok"


@pytest.mark.parametrize(
    "change",
    [None, lambda model, m: model.hidden.bias.zero_(), lambda model, m: model.hidden.bias.mul_(m**-0.5)],
    ids=["as PyTorch draws it", "zero", "smaller"],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_bias_that_is_small_beside_its_output_may_vanish(
    layer: Callable[[int, int], nn.Linear], change: Change | None
) -> None:
    report = checked(built(layer, LARGE, change))
    assert blamed(report) == {}
    assert report.exit_code == 0


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_matrix_to_blame_is_told_first(size: float) -> None:
    report = checked(built(nn.Linear, size, lambda model, m: model.hidden.weight.mul_(m**-0.5)))
    assert blamed(report) == {"hidden.weight": ("initialised too small", "init", 0.5)}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_not_the_biass_doing_is_not_explained_by_it(size: float) -> None:
    """Behind the table, bias and output shrink alike, and with the bias of one scale the output would still shrink."""
    report = checked(built(Table, size))
    assert blamed(report) == {}
    assert any("cause not found" in note for note in report.notes)


def test_a_readouts_bias_may_not_grow() -> None:
    def grow(model: Net, m: float) -> None:
        model.readout.bias.fill_(4 * m**0.5)

    report = checked(built(nn.Linear, LARGE, grow))
    assert blamed(report) == {"readout.bias": ("initialised too large", "init", -0.5)}
    assert checked(built(nn.Linear, LARGE, lambda model, m: model.readout.bias.fill_(4.0))).exit_code == 0


def test_so_it_is_in_a_loop(tmp_path: Path) -> None:
    report = recorded(built(nn.Linear, SMALL), BATCH, tmp_path, WIDTHS, SEEDS, updates=3)
    assert blamed(report) == {"hidden.bias": ("initialised too small", "init", 0.5)}
