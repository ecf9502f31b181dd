"""Layers whose first input is all zeros: what they give is a bias alone, whose scale at t=0 says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck import Report, check
from coordcheck.analysis.verdicts import Verdict
from coordcheck.recording import scales
from coordcheck.recording.layers.activations import ActivationRecorder

GENERATOR = torch.Generator().manual_seed(0)
SEQUENCES, ROWS = torch.randn(16, 4, 8, generator=GENERATOR), torch.randn(32, 8, generator=GENERATOR)
BASE, WIDTHS = 32, (32, 64, 128)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ih, self.hh, self.out = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.hh.in_features)
        for step in x.unbind(1):
            h = torch.tanh(self.ih(step) + self.hh(h))
        return self.out(h)


class Equilibrium(nn.Module):
    """A fixed point, iterated from zero, with one step of gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(8, width), nn.Linear(width, width)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros(len(x), self.hh.in_features)
        with torch.no_grad():
            for _ in range(3):
                z = self.step(z, x)
        return self.out(self.step(z, x))

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.hh(z) * 0.5 + self.ih(x)))


def built(make: Callable[[int], nn.Module], power: float = 0.5, rate: float = 1.0) -> Callable[[int], object]:
    """In µP; the recurrent matrix with n ** -power and a learning rate that falls as n ** -rate."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = make(width), width / BASE
        parameters = dict(model.named_parameters())
        nn.init.normal_(parameters["hh.weight"], std=BASE**-0.5 * m**-power)
        nn.init.normal_(parameters["out.weight"], std=BASE**-0.5 / m)
        rates = {"hh.weight": 1e-3 * m**-rate, "out.weight": 1e-3 / m}
        groups = [{"params": [p], "lr": rates.get(name, 1e-3)} for name, p in parameters.items()]
        return model, torch.optim.Adam(groups)

    return build


def checked(build: Callable[[int], object], x: Tensor) -> Report:
    targets = torch.randint(5, (len(x),), generator=torch.Generator().manual_seed(0))
    return check(build, (x, targets), loss=F.cross_entropy, widths=WIDTHS, seeds=3, steps=2)


KINDS = {"recurrent": (Recurrent, SEQUENCES), "equilibrium": (Equilibrium, ROWS)}


@pytest.mark.parametrize("name", KINDS)
def test_the_first_call_on_zeros_is_no_false_alarm(name: str) -> None:
    make, x = KINDS[name]
    report = checked(built(make), x)
    layers = report.layers.set_index("layer")
    assert not [word for word in layers["verdict"] if Verdict(word).violated]
    assert "its input at t=0 is zero" in str(layers.loc["hh", "explanation"])
    assert "zero" not in str(layers.loc["hh#2", "explanation"])
    assert report.culprits.empty


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("power", "rate", "cause"), [(0.0, 1.0, "init"), (0.5, 0.0, "lr")])
def test_the_matrix_is_judged_by_its_later_calls(name: str, power: float, rate: float, cause: str) -> None:
    make, x = KINDS[name]
    report = checked(built(make, power, rate), x)
    assert report.exit_code == 1
    assert report.culprits["parameter"].tolist() == ["hh.weight"]
    assert report.culprits["cause"].tolist() == [cause]


class Chain(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.first, self.act, self.second, self.both = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x * self.scale
        return self.both(self.second(self.act(self.first(zeros))), x)


def statuses(scale: float) -> dict[str, str]:
    model = Chain(scale)
    with ActivationRecorder(model, fixed_batch=True) as recorder:
        for step in range(2):
            with recorder.window(step):
                model(torch.ones(2, 4))
        names = {site.order: name for name, site in recorder.sites.items()}
        rows = [row for row in recorder.rows if row.step == 0 and row.quantity.value == "activation"]
        return {names[row.site]: row.status.value for row in rows}


@pytest.mark.parametrize("kept", [set(), {"cpu"}], ids=["on a device", "in memory"])
def test_what_is_made_of_zeros_alone_is_told(kept: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scales, "IN_MEMORY", kept)
    alone = {"first", "act", "second"}
    found = statuses(0.0)
    assert {name for name, status in found.items() if status == "zero input"} == alone
    assert set(statuses(1.0).values()) == {"ok"}


def test_nan_of_zeros_is_nan() -> None:
    class Ratio(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x

    model = Ratio()
    with ActivationRecorder(model, fixed_batch=True) as recorder:
        with recorder.window(0):
            model(torch.zeros(2, 4))
        assert [row.status.value for row in recorder.rows] == ["nan", "nan"]
    assert math.isnan(float(model(torch.zeros(1))))
