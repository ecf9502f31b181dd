"""Layers whose first input is all zeros: what they give is a bias alone, whose scale at t=0 says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck import Report, check, diagnose
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


# A parameter whose input is zero at t=0 is judged on the first input that is not


class Attention(nn.Module):
    """Queries start at zero, as µP advises, so that a key of the model's own meets zeros at first."""

    def __init__(self, width: int, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inp, self.q, self.k, self.v = nn.Linear(8, width), *(nn.Linear(width, width, bias=False) for _ in "qkv")
        self.key, self.value = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.randn(width))
        self.out, self.join = nn.Linear(width, 5), join
        nn.init.zeros_(self.q.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(self.inp(x), (self.key.numel(),))
        keys, values = self.join(self.k(h), self.key), self.join(self.v(h), self.value)
        weights = (torch.bmm(self.q(h), keys.mT) * BASE**0.5 / self.key.numel()).softmax(-1)
        return self.out(F.layer_norm(torch.bmm(weights, values), (self.key.numel(),))).mean(1)


def beside(rows: Tensor, own: Tensor) -> Tensor:
    return torch.cat([rows, own.expand(len(rows), 1, -1)], 1)


def before(rows: Tensor, own: Tensor) -> Tensor:
    return torch.cat([own.view(1, 1, -1).repeat(len(rows), 2, 1), rows], 1)


def plus(rows: Tensor, own: Tensor) -> Tensor:
    return rows + own


class Adapter(nn.Module):
    """The second matrix of a branch whose first one starts at zero."""

    def __init__(self, width: int, _: object) -> None:
        super().__init__()
        self.inp, self.down = nn.Linear(8, width), nn.Linear(width, width, bias=False)
        self.up, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, 5)
        nn.init.normal_(self.up.weight, std=width**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(self.inp(x), (self.out.in_features,))
        return self.out(F.layer_norm(h + self.up(self.down(h)), (self.out.in_features,)))


def adam(make: Callable[..., nn.Module], join: object, faults: dict[str, float]) -> Callable[[int], object]:
    """In µP, but for learning rates that are off by a power of the width."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, m = make(width, join), width / BASE
        nn.init.normal_(model.out.weight, std=BASE**0.5 / width)
        own = {n: -1.0 if p.dim() > 1 and p.shape[1] == width else 0.0 for n, p in model.named_parameters()}
        rates = {name: 1e-3 * m ** (power + faults.get(name, 0.0)) for name, power in own.items()}
        return model, torch.optim.Adam([{"params": [p], "lr": rates[n]} for n, p in model.named_parameters()])

    return build


def diagnosed(make: Callable[..., nn.Module], join: object, **faults: float) -> Report:
    x = SEQUENCES if make is Attention else ROWS
    targets = torch.randint(5, (len(x),), generator=torch.Generator().manual_seed(0))
    build = adam(make, join, {name.replace("_", "."): power for name, power in faults.items()})
    return diagnose(build, (x, targets), loss=F.cross_entropy, widths=WIDTHS, seeds=2)


@pytest.mark.parametrize("join", [beside, before, plus])
def test_a_key_that_zero_queries_meet_at_first_is_measured(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    report = diagnosed(Attention, join)
    key = report.parameters.set_index("layer").loc["key"]
    assert report.culprits.empty
    assert report.exit_code == 0, report
    assert key["verdict"] == ("not visible" if join is plus else "ok")  # added to all keys it changes nothing
    assert join is plus or abs(key["response_measured"]) < 0.25


@pytest.mark.parametrize("join", [beside, before])
def test_and_its_learning_rate_is_judged(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    report = diagnosed(Attention, join, key=1.0)
    assert report.culprits["layer"].tolist() == ["key"]
    assert report.culprits[["cause", "exponent"]].to_numpy().tolist() == [["lr", -1.0]]


def test_a_matrix_behind_zeros_is_measured_but_for_its_gain() -> None:
    report = diagnosed(Adapter, None)
    up = report.parameters.set_index("layer").loc["up.weight"]
    assert report.culprits.empty
    assert up["response_measured"] == pytest.approx(0, abs=0.25)
    assert up["verdict"] == "undecided"
    assert "its gain could not be measured" in up["explanation"]
    report = diagnosed(Adapter, None, up_weight=1.0)
    assert report.culprits["layer"].tolist() == ["up.weight"]
