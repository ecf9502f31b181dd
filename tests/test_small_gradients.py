"""An optimizer's eps beside gradients that fall with the width: where it is the cause, where it will be, where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import NAdam, RMSprop

import coordcheck
from coordcheck.analysis.small_gradients import Updates, updates_of
from coordcheck.models import mlp
from coordcheck.recording.recorder import Recorder
from coordcheck.recording.updates.first_updates import SAMPLED, FirstUpdates
from coordcheck.runs.records import ParameterInfo, RunKey, RunRecord

WIDTHS = (64, 128, 256, 512)
BATCH = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10


def net(width: int) -> tuple[nn.Module, list[dict]]:
    """A µP network, whose gradients are 7e-3 at width 64 and 9e-4 at 512, and its groups."""
    layers = nn.Linear(32, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    model = nn.Sequential(*layers)
    for index in (0, 2, 4):
        nn.init.normal_(model[index].weight, std=model[index].in_features ** -0.5)
        nn.init.zeros_(model[index].bias)
    with torch.no_grad():
        model[4].weight.mul_((64 / width) ** 0.5)
    slow = [model[2].weight, model[4].weight]
    rest = [p for p in model.parameters() if all(p is not other for other in slow)]
    return model, [{"params": rest}, {"params": slow, "lr": 1e-3 * 64 / width}]


def build(eps: float, falls: bool = False, make=torch.optim.Adam):
    def at(width: int):
        model, groups = net(width)
        return model, make(groups, lr=1e-3, eps=eps * (64 / width if falls else 1))

    return at


def checked(at, **options) -> coordcheck.Report:
    return coordcheck.check(at, BATCH, loss=F.cross_entropy, **{"widths": WIDTHS, "steps": 2, "seeds": 1, **options})


def blamed(report: coordcheck.Report) -> dict[str, tuple[str, float]]:
    return {row.parameter: (row.cause, row.exponent) for row in report.culprits.itertuples()}


# Checks: both sides


@pytest.mark.parametrize(
    ("make", "eps"), [(torch.optim.Adam, 2e-3), (NAdam, 2e-3), (RMSprop, 2e-4)], ids=["Adam", "NAdam", "RMSprop"]
)
def test_an_eps_that_gradients_fall_to_is_the_cause(make, eps):
    report = checked(build(eps, make=make))
    found = blamed(report)
    assert found["0.weight"] == found["2.weight"] == ("eps", -1.0)
    assert {cause for cause, _ in found.values()} == {"eps"}
    assert report.exit_code == 1
    row = report.culprits.iloc[0]
    assert "multiply the optimizer's eps for it by m^-1" in row.remedy
    assert "falls as m^-1.0" in row.explanation
    assert "as large at width" in row.explanation
    assert "eps × m^-1" in str(report)
    assert not any("eps" in note for note in report.notes)


@pytest.mark.parametrize(("eps", "falls"), [(2e-3, True), (1e-8, False), (1e-12, False)])
def test_an_eps_that_falls_with_them_or_is_far_below_is_not(eps, falls):
    report = checked(build(eps, falls))
    assert report.status == {"at": "ok"}
    assert blamed(report) == {}
    assert not any("eps" in note for note in report.notes if not falls or "wider models" in note)


def test_an_eps_at_every_width_above_the_gradients_is():
    report = checked(build(1.0))
    assert blamed(report)["2.weight"] == ("eps", -1.0)
    assert "larger at every width" in report.culprits["explanation"].iloc[0]


def test_an_eps_that_is_reached_somewhat_later_is_told_and_blames_nobody():
    report = checked(build(2e-4))
    assert report.status == {"at": "ok"}
    (note,) = [note for note in report.notes if "eps" in note]
    assert "falls as m^-1.0" in note
    assert "Multiply eps by m^-1" in note
    width = int(note.partition("at about width ")[2].partition(":")[0])
    assert 512 < width < 4096


def test_wrong_learning_rates_are_what_they_were():
    at = build(1e-8)

    def fast(width):
        model, optimizer = at(width)
        optimizer.param_groups[1]["lr"] = 1e-3
        return model, optimizer

    assert blamed(checked(fast)) == {"2.weight": ("lr", -1.0), "4.weight": ("lr", -1.0)}


def test_sgd_and_orthonormal_updates_have_no_eps_to_blame():
    assert not any("eps" in note for note in checked(mlp("µP", "sgd", inputs=32)).notes)
    muon = getattr(torch.optim, "Muon", None)
    if muon is not None:

        def with_muon(width):
            model, _ = net(width)
            matrices = [model[2].weight]
            rest = [p for p in model.parameters() if p is not matrices[0]]
            return model, [muon(matrices, lr=1e-3, weight_decay=0.0), torch.optim.Adam(rest, lr=1e-3)]

        assert "eps" not in {cause for cause, _ in blamed(checked(with_muon)).values()}


# A diagnosis alone, which trains for one update where eps is near the probe's gradients


def diagnosed(at) -> coordcheck.Report:
    return coordcheck.diagnose(at, BATCH, loss=F.cross_entropy, widths=WIDTHS[:3], seeds=1)


@pytest.mark.parametrize(("eps", "make"), [(4e-3, torch.optim.Adam), (1.0, torch.optim.AdamW), (4e-4, RMSprop)])
def test_a_diagnosis_alone_names_it(eps, make):
    found = blamed(diagnosed(build(eps, make=make)))
    assert found["0.weight"] == found["2.weight"] == ("eps", -1.0)
    assert {cause for cause, _ in found.values()} == {"eps"}


@pytest.mark.parametrize(("eps", "falls"), [(4e-3, True), (1.0, True), (1e-8, False), (1e-5, False)])
def test_a_diagnosis_alone_of_an_eps_that_is_none_of_its_business(eps, falls):
    report = diagnosed(build(eps, falls))
    assert (report.status, blamed(report)) == ({"at": "ok"}, {})


def test_a_diagnosis_alone_waits_for_the_gradients_behind_a_zero_readout():
    at = build(4e-3)

    def from_zero(width):
        model, optimizer = at(width)
        nn.init.zeros_(model[4].weight)
        return model, optimizer

    assert blamed(diagnosed(from_zero))["2.weight"] == ("eps", -1.0)


@pytest.mark.parametrize(("eps", "seen"), [(1e-8, {4}), (4e-3, {4, 64})])
def test_a_diagnosis_alone_takes_the_whole_batch_only_then(eps, seen):
    sizes = set()

    def at(width):
        model, optimizer = build(eps)(width)
        model.register_forward_pre_hook(lambda model, given: sizes.add(len(given[0])))
        return model, optimizer

    diagnosed(at)
    assert sizes == seen


@pytest.mark.parametrize(("eps", "told"), [(1e-8, []), (4e-3, ["ValueError: too many"])])
def test_a_batch_that_a_model_refuses_costs_a_diagnosis_alone_nothing_else(eps, told):
    class Few(nn.Sequential):
        def forward(self, x):
            if len(x) == 64:
                raise ValueError("too many")
            return super().forward(x)

    def at(width):
        model, optimizer = build(eps)(width)
        model.__class__ = Few
        return model, optimizer

    report = diagnosed(at)
    assert blamed(report) == {}
    assert [note.rpartition("whole batch failed: ")[2] for note in report.notes if "eps was not" in note] == told


# A loop of the user's own


@pytest.mark.parametrize(("eps", "clip"), [(2e-3, None), (2e-3, 0.5), (1e-8, None)])
def test_a_loop_tells_the_same(eps, clip, tmp_path: Path):
    for width in WIDTHS:
        torch.manual_seed(0)
        model, optimizer = build(eps)(width)
        with Recorder(model, optimizer, width=width, save_to=tmp_path):
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
    report = coordcheck.load(tmp_path)
    found = blamed(report)
    assert {cause for cause, _ in found.values()} == ({"eps"} if eps > 1e-6 else set())
    assert eps < 1e-6 or found["2.weight"] == ("eps", -1.0)


# What is noted


def test_first_updates_are_those_of_the_first_gradients():
    model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.Linear(200, 3))
    nn.init.zeros_(model[1].weight)  # which leaves the first layer without a gradient at first
    optimizer, firsts = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12), FirstUpdates()
    gradients = {}
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(
            model(torch.ones(8, 300).normal_(generator=torch.Generator().manual_seed(1))), torch.ones(8, 3)
        ).backward()
        for name, p in model.named_parameters():
            if p.grad.any():
                gradients.setdefault(name, p.grad.clone())
        firsts.before(model)
        optimizer.step()
        firsts.after()
    infos = [ParameterInfo(name, tuple(p.shape), 1e-3, 0.0, True) for name, p in model.named_parameters()]
    for info in firsts.told(infos):
        assert info.gradient == pytest.approx(float(gradients[info.name].pow(2).mean().sqrt()), rel=0.1)
        late = 0.5263 / 0.7072 if info.name == "0.weight" else 1.0  # bias corrections of a history of one zero
        assert info.update == pytest.approx(1e-3 * late, rel=1e-2)


def test_rows_without_a_gradient_do_not_count():
    model = nn.Embedding(5000, 16)
    optimizer, firsts = torch.optim.Adam(model.parameters(), lr=1e-3), FirstUpdates()
    model(torch.tensor([7, 4000])).sum().backward()
    firsts.before(model)
    optimizer.step()
    firsts.after()
    (info,) = firsts.told([ParameterInfo("weight", (5000, 16), 1e-3, 0.0, True)])
    assert model.weight.numel() > SAMPLED
    assert (info.gradient, info.update) == (1.0, pytest.approx(1e-3, rel=1e-3))


def test_an_update_that_rounding_takes_away_is_not_known():
    model = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    optimizer, firsts = torch.optim.Adam(model.parameters(), lr=1e-4), FirstUpdates()
    model(torch.ones(2, 64, dtype=torch.bfloat16)).sum().backward()
    firsts.before(model)
    optimizer.step()
    firsts.after()
    (info,) = firsts.told([ParameterInfo("weight", (64, 64), 1e-4, 0.0, True)])
    assert info.gradient
    assert info.update is None


def test_the_fit_finds_the_bias_corrections_of_a_later_step():
    gradients = {width: 1e-3 * 64 / width for width in WIDTHS}
    sizes = {width: 1 / (1.6 + 2.7 * 1e-4 / g) for width, g in gradients.items()}
    found = Updates(gradients, sizes, dict.fromkeys(WIDTHS, 1e-4))
    assert found.slows_by_eps == pytest.approx(found.slows)
    assert found.takes_over == pytest.approx(64 * 10 * 1.6 / 2.7, rel=1e-3)


@pytest.mark.parametrize("slope", [-0.5, -1.0])
def test_updates_that_fall_far_above_eps_fall_for_another_reason(slope):
    gradients = {width: 1e-3 * 64 / width for width in WIDTHS}
    found = Updates(gradients, {w: (w / 64) ** slope for w in WIDTHS}, dict.fromkeys(WIDTHS, 1e-8))
    assert found.slows_by_eps == 0
    assert found.slows == pytest.approx(slope)


def test_medians_over_seeds_of_what_is_known_at_three_widths():
    def record(width: int, seed: int, update: float | None) -> RunRecord:
        info = ParameterInfo("w", (4, 4), 0.1, 0.0, True, 1e-8, 1e-3, update)
        return RunRecord(RunKey("model", width, seed), parameters=[info])

    records = [record(w, s, 0.1 * (s + 1)) for w in WIDTHS[:3] for s in range(3)]
    assert np.allclose(list(updates_of(records)["w"].sizes.values()), 2.0)
    assert updates_of([record(w, 0, 0.1) for w in WIDTHS[:2]]) == {}
    assert updates_of([record(w, 0, None) for w in WIDTHS]) == {}
