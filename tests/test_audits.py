"""What the settings themselves tell."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch

import coordcheck
from coordcheck.analysis.audits import _clipped, _degrees
from coordcheck.analysis.verdicts import Verdict
from coordcheck.models import mlp
from coordcheck.recording.updates.decays import pulled
from coordcheck.runs.records import ParameterInfo, RunKey, RunRecord, Site, Use, measured_row
from coordcheck.runs.words import Kind, Quantity


def diagnosed(builds, **options):
    options = {"loss": F.cross_entropy, "widths": (32, 64, 128), "seeds": 1} | options
    return coordcheck.diagnose(builds, pair_batch(), **options)


def with_optimizer(make, parametrization="µP"):
    def build(width):
        model, optimizer = mlp(parametrization)(width)
        return model, make(model, [{"params": g["params"], "lr": g["lr"]} for g in optimizer.param_groups])

    return build


def adamw(decay):
    return with_optimizer(lambda model, groups: torch.optim.AdamW(groups, weight_decay=decay))


def independent(model, groups):
    """Decay that does not follow the learning rate: lr * weight_decay is the same for all."""
    return torch.optim.AdamW([{**group, "weight_decay": 1e-4 / group["lr"]} for group in groups])


def test_a_decay_coupled_to_a_learning_rate_that_falls_is_told():
    notes = diagnosed({"model": adamw(0.1)}).notes
    assert any(
        "learning rate x weight decay of hidden.0.weight and 2 more scales as m^-1 (m = width / base width): a" in note
        for note in notes
    )
    assert any("multiply weight_decay by m^1" in note for note in notes)


@pytest.mark.parametrize("build", [adamw(0.0), with_optimizer(independent)], ids=["no decay", "independent"])
def test_no_decay_or_an_independent_one_is_not(build):
    assert not any("weight decay" in note for note in diagnosed({"model": build}).notes)


def too_fast(model, groups):
    """Learning rates that do not fall with the width, and a decay that is right once they do."""
    return torch.optim.AdamW([{**g, "lr": 1e-3, "weight_decay": 1e-4 / g["lr"]} for g in groups])


def test_a_decay_that_is_right_once_the_learning_rates_are_is_not_told():
    report = diagnosed({"model": with_optimizer(too_fast)})
    assert set(report.culprits["lr_exponent"]) == {-1.0}
    assert not any("weight decay" in note for note in report.notes)


@pytest.mark.parametrize(("power", "told"), [(-0.5, "more at larger widths"), (0.5, "less at larger widths")])
def test_clipping_is_told_whichever_way_the_gradients_go(power, told):
    own = SimpleNamespace(parameter="w", trained=True, name="w")
    found = SimpleNamespace(clipped=(), shrinking=SimpleNamespace(known=True, value=power))
    (note,) = _clipped([SimpleNamespace(use=own, verdict=Verdict.LEARNS_TOO_FAST, exponents=found)])
    assert told in note
    assert f"Multiply its threshold by m^{-power:g}" in note


def test_labels_that_are_one_and_the_same_are_told():
    same = diagnosed({"SP": mlp("SP"), "µP": mlp("SP")})
    assert "SP and µP gave identical numbers: was the difference between them switched on?" in same.notes
    different = diagnosed({"SP": mlp("SP"), "µP": mlp("µP")})
    assert not any("identical" in note for note in different.notes)


class WarmUp(torch.optim.Adam):
    """A learning rate of zero at the first step."""

    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        if not self.state:
            for group in self.param_groups:
                group["lr"] = 0.0
        super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


def test_a_warm_up_from_zero_is_told_and_judged_later():
    report = diagnosed({"model": with_optimizer(lambda model, groups: WarmUp(groups))})
    assert any("nothing moved before t=2" in note for note in report.notes)
    assert report.exit_code == 0, str(report)
    assert set(report.parameters["gain"].dropna().round()) <= {0.0, -1.0}
    assert not any("nothing moved" in note for note in diagnosed({"model": mlp("µP")}).notes)


def test_an_eps_as_large_as_the_gradient_is_told():
    large = with_optimizer(lambda model, groups: torch.optim.Adam(groups, eps=1e-2))
    assert set(diagnosed({"model": large}).culprits["cause"]) == {"eps"}

    def as_large(model, groups):  # at every width, as gradients fall with it
        return torch.optim.Adam(groups, eps=0.3 / sum(p.numel() for p in model.parameters()) ** 0.5)

    found = diagnosed({"model": with_optimizer(as_large)})
    assert found.culprits.empty
    assert any("neither 0 (Adam) nor 1 (SGD): is eps" in note for note in found.notes)
    assert not any("eps" in note for note in diagnosed({"model": mlp("µP")}).notes)


@pytest.mark.parametrize(
    ("value", "step", "told"), [(1e-2, 0, True), (1e-3, 0, True), (1.0, 0, False), (1e-3, 1, False)]
)
def test_eps_is_held_against_the_gradient_of_the_first_update(value, step, told):
    """Adam's update g / (|g| + eps) is of degree eps / (|g| + eps) in g."""
    record = RunRecord(RunKey("model", 64, 0), parameters=[ParameterInfo("w", (4, 4), 0.1, 0.0, True, eps=1e-2)])
    record.sites = [Site("w", 0, Kind.PARAMETER, (4, 4), "float32")]
    record.rows = [measured_row(0, step, Quantity.WEIGHT_GRADIENT, value)]
    record.uses = [Use(0, "w", "w", "linear", 4, 4, 1.0, 0.0, True, ())]
    own = SimpleNamespace(parameter="w", name="w")
    found = SimpleNamespace(has_gradient=True, degree=0.0, moved=True, step=1)
    notes = list(_degrees([record], [SimpleNamespace(use=own, verdict=Verdict.OK, exponents=found)]))
    degree = 1e-2 / (1e-2 + value)
    assert [f"is of degree {degree:.2f} in the gradient" in note for note in notes] == [True] * told


def test_one_factor_for_all_learning_rates_is_one_advice():
    report = diagnosed({"model": mlp("mean-field", "sgd", lr=0.1, biases=False)}, seeds=2)
    assert any(
        note.endswith("multiply the base learning rate by m^1, m = width / base width") for note in report.notes
    ), report.notes
    assert not any("one factor" in note for note in diagnosed({"model": mlp("SP")}).notes)


def test_parameters_that_are_not_visible_are_told_with_the_reason():
    def build(width):
        model, optimizer = mlp("µP")(width)
        model.idle = torch.nn.Linear(width, width)
        return model, optimizer

    notes = diagnosed({"model": build}).notes
    assert "model: not visible: idle.weight, idle.bias: no gradient reached it" in notes
    assert not any("not visible" in note for note in diagnosed({"model": mlp("µP")}).notes)


DECAYS = {
    "AdamW": (torch.optim.AdamW, {}, True),
    "Adam": (torch.optim.Adam, {}, False),
    "Adam, decoupled": (torch.optim.Adam, {"decoupled_weight_decay": True}, True),
    "RMSprop": (torch.optim.RMSprop, {}, False),
    "Adagrad": (torch.optim.Adagrad, {}, False),
    "NAdam": (torch.optim.NAdam, {}, False),
    "RAdam": (torch.optim.RAdam, {}, False),
    "Adamax": (torch.optim.Adamax, {}, False),
    "SGD": (torch.optim.SGD, {}, True),
    "SGD, Nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, True),
}


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_what_a_decay_does_without_a_gradient_tells_whether_it_pulls(kind, shape):
    make, options, expected = DECAYS[kind]
    if not all(name in inspect.signature(make).parameters for name in options):
        pytest.skip("torch is too old")
    before = torch.get_rng_state()
    optimizer = make([torch.nn.Parameter(torch.randn(shape, generator=torch.Generator()))], weight_decay=0.1, **options)
    assert pulled(optimizer, optimizer.param_groups[0]) is expected
    assert torch.equal(torch.get_rng_state(), before)
    assert not optimizer.state or make is torch.optim.Adagrad


def test_a_decay_that_is_none_or_cannot_be_measured_is_unknown():
    class Closure(torch.optim.SGD):
        def step(self, closure):
            return closure()

    weight, number = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(()))
    for optimizer in (
        torch.optim.SGD([weight], lr=0.1),
        Closure([weight], lr=0.1, weight_decay=0.1),
        torch.optim.Adam([number], weight_decay=0.1),
    ):
        assert pulled(optimizer, optimizer.param_groups[0]) is None


@pytest.mark.parametrize(("make", "told"), [(torch.optim.Adam, False), (torch.optim.AdamW, True)])
def test_a_decay_that_is_normalised_with_the_gradient_has_no_pull_to_keep(make, told):
    report = diagnosed({"model": with_optimizer(lambda model, groups: make(groups, weight_decay=0.1))})
    assert any("weight_decay" in note for note in report.notes) is told
