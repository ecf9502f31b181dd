"""Optimizers whose updates become others within the first steps are judged by those that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import told
from torch import nn
from torch.optim import SGD, Adagrad, Adam, NAdam, RAdam, RMSprop

import coordcheck
from coordcheck.recording.recorder import Recorder
from coordcheck.recording.updates.degrees import degrees
from coordcheck.recording.updates.settling import settle, settled_degrees

BASE = 32
BATCH = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5


def build(width: int, powers: dict[str, float] | None = None, make: Any = RAdam) -> tuple[nn.Module, Any]:
    """A net in Adam's µP, whose learning rates may have further powers of the width."""
    model, m = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()), width / BASE
    model.append(nn.Linear(width, 5))
    nn.init.normal_(model[4].weight, std=BASE**0.5 / width)
    of = {"2.weight": -1.0, "4.weight": -1.0}
    rates = {name: m ** (of.get(name, 0.0) + (powers or {}).get(name, 0.0)) for name, _ in model.named_parameters()}
    return model, make([{"params": [p], "lr": 1e-3 * rates[name]} for name, p in model.named_parameters()], lr=1e-3)


@pytest.mark.parametrize(
    ("make", "becomes"),
    [
        (RAdam, {0.0}),
        (lambda groups, lr: RAdam(groups, lr=lr, weight_decay=0.1, decoupled_weight_decay=True), {0.0}),
        (Adam, set()),
        (NAdam, set()),
        (RMSprop, set()),
        (SGD, set()),
        (lambda groups, lr: SGD(groups, lr=lr, momentum=0.9, nesterov=True), set()),
        (lambda groups, lr: Adagrad(groups, lr=lr, initial_accumulator_value=10.0), set()),
    ],
)
def test_what_updates_become(make: Any, becomes: set[float]):
    model, optimizer = build(32, make=make)
    found = settled_degrees(model, [optimizer], degrees(model, [optimizer]))
    assert {round(degree, 2) + 0.0 for degree in found.values()} == becomes


def test_settling_moves_nothing_and_leaves_the_learning_rates():
    model, optimizer = build(32)
    F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    before, rates = [p.clone() for p in model.parameters()], [group["lr"] for group in optimizer.param_groups]
    settle([optimizer])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == rates


@pytest.mark.parametrize(
    ("powers", "blamed"),
    [
        ({}, {}),
        ({"2.weight": 1.0}, {"2.weight": "lr -1"}),
        ({"0.weight": -1.0, "4.weight": 0.5}, {"0.weight": "lr 1", "4.weight": "lr -0.5"}),
    ],
)
def test_radam_is_judged_by_the_rule_of_adam(powers: dict[str, float], blamed: dict[str, str]):
    report = coordcheck.diagnose(
        lambda width: build(width, powers), BATCH, loss=F.cross_entropy, widths=(32, 64, 128), seeds=2
    )
    assert told(report.verdicts) == blamed
    assert any("become others within 8 steps" in note for note in report.notes)


def test_a_loop_of_few_steps_does_not_judge_them(tmp_path: Path):
    for width in (32, 64, 128):
        torch.manual_seed(0)
        model, optimizer = build(width)
        with Recorder(model, optimizer, width=width, save_to=tmp_path):
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
                optimizer.step()
    verdicts = coordcheck.load(tmp_path).verdicts
    assert told(verdicts) == {}
    assert set(verdicts.loc[verdicts["parameter"].notna(), "verdict"]) == {"undecided"}
