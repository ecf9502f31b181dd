"""Symptoms and causes in one table."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch

import coordcheck
from coordcheck.analysis.culprits import COLUMNS, combined
from coordcheck.analysis.verdicts import Verdict
from coordcheck.models import mlp

OPTIONS = {"loss": F.cross_entropy, "widths": (64, 128, 256), "seeds": 2}


def with_rate(name, exponent):
    """Correct µP but for one learning rate, off by (width / 64) ** exponent."""

    def build(width):
        model, optimizer = mlp("µP", lr=3e-3)(width)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        groups = [
            {"params": [p], "lr": rates[id(p)] * ((width / 64) ** exponent if key == name else 1)}
            for key, p in model.named_parameters()
        ]
        return model, torch.optim.Adam(groups)

    return build


@pytest.fixture(scope="module")
def one_fault():
    torch.set_num_threads(1)
    return coordcheck.check({"model": with_rate("hidden.0.weight", 1)}, pair_batch(), **OPTIONS)


def test_one_fault_has_one_culprit_and_its_remedy(one_fault):
    (row,) = one_fault.culprits.to_dict("records")
    assert (row["parameter"], row["role"], row["verdict"]) == ("hidden.0.weight", "hidden", "learns too fast")
    assert (row["cause"], row["exponent"], row["lr_exponent"]) == ("lr", -1, -1)
    assert row["remedy"] == "hidden.0.weight: multiply its learning rate by m^-1, m = width / base width"
    assert (row["init_exponent"], row["multiplier_exponent"]) == (0, 0)


def test_symptoms_name_their_own_or_an_inherited_cause(one_fault):
    causes = dict(zip(one_fault.layers["layer"], one_fault.layers["cause"], strict=True))
    assert causes["hidden.0"] == "own: hidden.0.weight"
    assert causes["hidden.1"] == "inherited: hidden.0.weight"
    assert pd.isna(causes["input"])


def test_a_fault_without_a_symptom_is_a_violation_all_the_same():
    build = with_rate("input.weight", -1)  # one matrix that learns too slowly hardly shows in any activation
    blind = coordcheck.check({"model": build}, pair_batch(), probe=None, **OPTIONS)
    seen = coordcheck.check({"model": build}, pair_batch(), **OPTIONS)
    assert list(seen.culprits["parameter"]) == ["input.weight"]
    assert seen.exit_code == 1
    assert set(blind.layers["verdict"]) - {"ok"} <= {"vanishes", "undecided"}
    classical = blind.slopes[(blind.slopes["quantity"] == "activation") & (blind.slopes["layer"] != "readout")]
    assert (classical["slope"].abs() < 0.25).all()


def test_rows_are_layers_and_then_parameters(one_fault):
    roles = one_fault.verdicts["role"].notna().tolist()
    assert roles == sorted(roles)
    assert list(one_fault.layers["layer"]) == ["input", "hidden.0", "hidden.1", "readout"]
    assert one_fault.layers["parameter"].isna().all()
    named = dict(mlp("µP")(64)[0].named_parameters())
    assert list(one_fault.parameters["parameter"]) == list(named)
    assert list(one_fault.verdicts.columns) == COLUMNS


def test_parameters_stand_where_their_module_does(one_fault):
    order = one_fault.layers.set_index("layer")["order"]
    for row in one_fault.parameters.itertuples():
        assert row.order == order[row.parameter.rpartition(".")[0]]


def test_without_a_diagnosis_there_are_layers_only():
    report = coordcheck.check({"model": mlp("SP")}, pair_batch(), probe=None, **OPTIONS)
    assert report.parameters.empty
    assert report.culprits.empty
    assert report.findings == {}
    assert report.exit_code == 1
    sites = report.layers[["label", "layer", "order", "verdict"]]
    assert combined(report.layers, {}, 0.25)[sites.columns].equals(sites)


@pytest.mark.parametrize(
    ("expect", "builds"), [("sp", "SP"), ("ntk", "NTK"), ("mean-field", "mean-field"), ("µP", "µP")]
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_model_meets_the_expectation_of_its_own_parametrization(expect, builds, optimizer):
    build = mlp(builds, optimizer, lr={"adam": 3e-3, "sgd": 0.1}[optimizer])
    report = coordcheck.check({"model": build}, pair_batch(), expect=expect, **OPTIONS | {"seeds": 4})
    assert report.exit_code == 0, str(report)
    assert report.parametrizations == {"model": builds}
    other = "mup" if expect != "µP" else "sp"
    assert coordcheck.diagnose({"model": build}, pair_batch(), expect=other, **OPTIONS).exit_code == 1


def test_the_status_is_the_culprits_when_no_layer_shows_it():
    def build(width):  # a bias left out of the optimizer: its layer moves through its weight
        model, optimizer = mlp("µP", lr=3e-3)(width)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not model.hidden[1].bias]
        return model, optimizer

    report = coordcheck.check({"model": build}, pair_batch(), **OPTIONS)
    assert list(report.culprits["parameter"]) == ["hidden.1.bias"]
    assert report.culprits["cause"].item() == "frozen"
    assert report.status == {"model": Verdict.FROZEN}
    assert report.exit_code == 1
    assert "give it to the optimizer" in str(report)


class Multiplied(torch.nn.Module):
    """A reference MLP whose logits are divided by width / 64 in the code around its readout."""

    def __init__(self, model, width):
        super().__init__()
        self.inner, self.factor = model, 64 / width

    def forward(self, x):
        return self.inner(x) * self.factor


def multiplied(width):
    """µP with a multiplier: the readout starts as in SP, times sqrt(m), and learns at the base rate."""
    model, optimizer = mlp("µP", lr=3e-3)(width)
    m = width / 64
    model.readout.weight.data.mul_(m)
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if p is model.readout.weight]
        group["params"] = [p for p in group["params"] if p is not model.readout.weight]
        if mine:
            readout = {"params": mine, "lr": group["lr"] * m}
    optimizer.add_param_group(readout)
    return Multiplied(model, width), optimizer


def test_a_multiplier_outside_of_a_layer_belongs_to_its_scale():
    report = coordcheck.check({"model": multiplied}, pair_batch(), **OPTIONS | {"seeds": 4})
    assert report.exit_code == 0, str(report)
    expected = dict(zip(report.layers["layer"], report.layers["expected"], strict=True))
    assert expected["inner.readout"] == 1
    assert expected["inner.hidden.0"] == 0
    raw = report.slopes.query("layer == 'inner.readout' and quantity == 'change' and step == 1")["slope"].item()
    assert raw == pytest.approx(1, abs=0.15)
    # without a diagnosis nobody knows of the multiplier, and the layer's own output does grow
    assert coordcheck.check({"model": multiplied}, pair_batch(), probe=None, **OPTIONS).exit_code == 1


class Routed(torch.nn.Module):
    """An expert that sees the examples of which a gate likes it."""

    def __init__(self, width):
        super().__init__()
        self.input, self.gate = torch.nn.Linear(64, width), torch.nn.Linear(64, 1)
        self.expert, self.readout = torch.nn.Linear(width, width), torch.nn.Linear(width, 10)

    def forward(self, x):
        h, liked = self.input(x).relu(), self.gate(x)[:, 0] > 0
        mixed = h.clone()
        mixed[liked] = h[liked] + self.expert(h[liked]) * self.gate(x)[liked].sigmoid()
        return self.readout(mixed)


def test_layers_whose_rows_change_with_the_routing_are_not_compared_in_training():
    def build(width):
        torch.manual_seed(width)  # which examples the gate likes differs between widths, too
        model = Routed(width)
        return model, torch.optim.SGD(model.parameters(), lr=3.0)

    report = coordcheck.check({"model": build}, pair_batch(examples=64), **OPTIONS)
    statuses = report.measurements.query("layer == 'expert' and quantity == 'change'")["status"]
    assert "shape changed" in set(statuses)
    row = report.layers.set_index("layer").loc["expert"]
    assert row["quantity"] != "change"
    assert row["verdict"] in ("ok", "not compared", "initialised too small")


@pytest.fixture(scope="module")
def healthy():
    torch.set_num_threads(1)
    return coordcheck.check({"model": mlp("µP", lr=3e-3)}, pair_batch(), **OPTIONS)


@pytest.mark.parametrize(
    ("seen", "slope", "right", "verdict"),
    [
        ("vanishes", -0.4, True, "undecided"),
        ("vanishes", -0.4, False, "vanishes"),
        ("vanishes", -2.0, True, "vanishes"),
        ("blows up", 0.4, True, "blows up"),
    ],
    ids=["all right", "one not visible", "too steep for it", "growth"],
)
def test_a_change_that_falls_though_all_parameters_are_right_decides_nothing(healthy, seen, slope, right, verdict):
    """As under a large batch, whose updates lose their alignment with the width."""
    found = list(healthy.findings["model"])
    assert {finding.verdict for finding in found} == {Verdict.OK}
    if not right:
        found[0] = found[0]._replace(verdict=Verdict.NOT_VISIBLE)
    symptom = {"verdict": seen, "quantity": "change", "slope": slope, "low": slope - 0.1, "high": slope + 0.1}
    sites = healthy.layers.assign(**symptom)
    rows = combined(sites, {"model": found}, 0.25)
    row = rows[rows["layer"] == "hidden.0"].iloc[0]
    assert row["verdict"] == verdict
    assert ("fewer examples decide" in row["explanation"]) == (verdict == "undecided")
