"""The sweep over architectures of the literature: it is sound, and a sample of it is judged exactly."""

from __future__ import annotations

import pytest
import torch
from sweep.catalogue import ARCHITECTURES
from sweep.judging import CRASHED, Row, Told, judged, powers
from sweep.mup import BASE, Architecture, Setup
from sweep.planting import Planted, choices, planted
from torch import nn

SAMPLE = ("HyperNetwork", "MinGRU", "SIREN", "Siamese", "Triplet")
FAULT = Planted("a", "init", 0.5, 0)


def told(exit_code: int, answer: dict[str, set[tuple[float, float]]]) -> Told:
    return Told("", exit_code, (), answer, 0.0)


def row(healthy: int, broken: int, answer: dict[str, set[tuple[float, float]]]) -> Row:
    return Row("", FAULT, told(healthy, {}), told(broken, answer))


def setup(name: str, width: int) -> Setup:
    torch.manual_seed(0)
    return Setup.of(ARCHITECTURES[name], width)


@pytest.mark.parametrize("name", SAMPLE)
def test_healthy_is_not_violated_and_the_fault_is_named_exactly(name):
    found = judged(name)
    assert found.clean, found.healthy
    assert found.exact, (str(found.fault), found.broken)
    assert found.broken.exit_code == 1


def test_the_sweep_is_large_and_every_architecture_has_a_source():
    assert len(ARCHITECTURES) >= 90
    assert all(model.source for model in ARCHITECTURES.values())
    with torch.random.fork_rng([]):
        faults = {name: planted(name) for name in ARCHITECTURES}
        others = {name: planted(name, draw=1) for name in ARCHITECTURES}
    assert sum(faults[name] != others[name] for name in faults) > len(faults) / 2
    causes = [fault.cause for fault in faults.values()]
    assert min(causes.count(cause) for cause in ("init", "lr", "multiplier")) >= 10


def test_roles_follow_from_how_the_fans_grow():
    class Small(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.into, self.hidden, self.readout = nn.Linear(8, n), nn.Conv1d(n, n, 3), nn.Linear(n, 2)
            self.raw, self.fixed = nn.Parameter(torch.empty(3, n)), nn.Linear(8, 8)

    model = Architecture("small", "", Small, None, lambda model, batch: model(batch), axes={"raw": (0, 1)})
    found = Setup.of(model, 4 * BASE)
    roles = {name: role for name, role in found.roles.items() if not name.endswith("bias")}
    assert roles == {
        "raw": "input",
        "into.weight": "input",
        "hidden.weight": "hidden",
        "readout.weight": "readout",
        "fixed.weight": "constant",
    }
    assert found.roles["into.bias"] == "vector"
    assert {round(found.rates[name] / model.lr, 6) for name in ("hidden.weight", "readout.weight")} == {0.25}
    assert float(found.parameters["hidden.weight"].detach().std()) == pytest.approx((3 * 4 * BASE) ** -0.5, rel=0.05)
    assert float(found.parameters["readout.weight"].detach().std()) == pytest.approx((4 * BASE) ** -0.5 / 2, rel=0.15)


def test_a_tensor_of_no_layer_needs_its_axes():
    class Raw(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, n))

    with pytest.raises(LookupError, match="needs its axes by hand"):
        Setup.of(Architecture("raw", "", Raw, None, lambda model, batch: model(batch)), BASE)


@pytest.mark.parametrize("name", ["Siamese", "Triplet"])
def test_a_fault_changes_one_parameter_and_nothing_at_the_base_width(name):
    for fault in choices(name):
        for width in (BASE, 2 * BASE):
            right, wrong = setup(name, width), setup(name, width)
            fault(wrong)
            init, lr = fault.exponents
            for key, parameter in right.parameters.items():
                growth = width / BASE if key == fault.parameter else 1.0
                assert torch.allclose(wrong.parameters[key], parameter * growth**init)
                assert wrong.rates[key] == pytest.approx(right.rates[key] * growth**lr)


def test_a_multiplier_is_told_as_what_it_amounts_to():
    nan = float("nan")
    assert powers({"init_exponent": nan, "lr_exponent": -1.0, "multiplier_exponent": nan}, 0) == (0, -1)
    assert powers({"init_exponent": 0.0, "lr_exponent": 0.0, "multiplier_exponent": -0.5}, 1) == (-0.5, -1)
    assert Planted("a", "multiplier", 0.5, 1).exponents == (0.5, 1.0)


def test_what_is_wrong_is_counted_as_wrong():
    right = row(3, 1, {"a": {(-0.5, 0.0)}})
    assert (right.clean, right.found, right.exact, right.honest) == (True, True, True, True)
    assert not row(1, 1, {}).clean
    assert not row(CRASHED, CRASHED, {}).clean
    assert not row(CRASHED, CRASHED, {}).honest
    assert not row(0, 0, {}).honest
    assert not row(0, 1, {"b": {(-0.5, 0.0)}}).found
    assert not row(0, 1, {"a": {(-0.5, 0.0)}, "b": {(-0.5, 0.0)}}).exact
    assert not row(0, 1, {"a": {(0.5, 0.0)}}).exact
