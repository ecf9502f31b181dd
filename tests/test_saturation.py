"""A batch that is learnt by heart within the first steps, and a change that shrinks for that reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import coordcheck
from coordcheck.analysis.movements import NOTHING_LEFT
from coordcheck.analysis.saturation import LATE, learnt, notes, without_learnt
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.words import Outcome

WIDTHS = (64, 128, 256)


class Net(nn.Module):
    """A µP network with a large output multiplier, whose readout starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(1024, width, bias=False), nn.Linear(width, width, bias=False)
        self.readout, self.multiplier = nn.Linear(width, 10, bias=False), 32 * 64 / width
        for layer in (self.first, self.hidden):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.readout.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.multiplier * self.hidden(self.first(x).tanh()).tanh())


GENERATOR = torch.Generator().manual_seed(0)
OPTIONS = {"batch": (torch.randn(32, 1024, generator=GENERATOR), torch.randint(10, (32,), generator=GENERATOR))}
OPTIONS |= {"loss": F.cross_entropy, "widths": WIDTHS, "seeds": 2}


def built(lr: float, decay: float = 0.0, without: str = ""):
    def build(width: int):
        model, wide = Net(width), lr * width / 64
        groups = [{"params": [model.first.weight, model.readout.weight], "lr": wide}, {"params": [model.hidden.weight]}]
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not dict(model.named_parameters()).get(without)]
        return model, torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=0.9, weight_decay=decay)

    return build


def checked(lr: float) -> coordcheck.Report:
    return coordcheck.check(built(lr), **OPTIONS, steps=3)


def test_a_batch_that_is_learnt_by_heart_decides_nothing():
    report = checked(0.1)
    assert report.status == {"build": "undecided"}
    assert report.exit_code == 3
    assert set(report.layers.set_index("layer").loc[["first", "hidden"], "verdict"]) == {"undecided"}
    (note,) = [note for note in report.notes if "learnt by heart" in note]
    assert "lower the learning rate, or take more examples" in note
    assert "add seeds" not in str(report)
    assert "VIOLATED" not in str(report)


def test_with_a_smaller_learning_rate_the_same_model_is_ok():
    report = checked(0.001)
    assert report.status == {"build": "ok"}
    assert not any("learnt by heart" in note for note in report.notes)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("lr", [0.1, 0.03, 0.02])  # what is left of the gradient: nothing, 1e-35, 1e-24
def test_what_had_no_gradient_before_the_probe_was_learnt_is_not_frozen(lr, decay):
    report = coordcheck.diagnose(built(lr, decay), **OPTIONS)
    found = report.parameters.set_index("layer")
    assert report.culprits.empty
    assert report.exit_code == 3
    assert found["verdict"].to_dict() == {
        "first.weight": "not visible",
        "hidden.weight": "not visible",
        "readout.weight": "ok",
    }
    assert found["explanation"]["hidden.weight"] == NOTHING_LEFT


def test_with_a_smaller_learning_rate_it_is_measured():
    report = coordcheck.diagnose(built(0.001), **OPTIONS)
    assert set(report.parameters["verdict"]) == {"ok"}
    report = coordcheck.diagnose(built(0.001, without="hidden.weight"), **OPTIONS)
    assert report.culprits["layer"].tolist() == ["hidden.weight"]
    assert report.culprits["cause"].tolist() == ["frozen"]


# The rule itself


def records(*losses: list[float | None], widths=WIDTHS) -> list[RunRecord]:
    return [RunRecord(RunKey("model", w, 0), losses=each) for w, each in zip(widths, losses, strict=False)]


def table(verdict: str = "vanishes", quantity: str = "change", step: int = 2, label: str = "model") -> pd.DataFrame:
    row = {"label": label, "layer": "fc", "verdict": verdict, "quantity": quantity, "step": step, "explanation": "why"}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.3, 2.0, 1.9], None),
        ([2.3, 0.3, 0.2], 2),
        ([2.3, 0.2, 0.1], 1),
        ([2.3, None, 0.1], 2),
        ([-1.0, -2.0, -20.0], None),  # the logarithm of a density, which has no end
        ([0.0, 0.0, 0.0], None),
        ([], None),
    ],
)
def test_a_loss_of_which_a_tenth_is_left_is_learnt(losses, expected):
    found = learnt(records(losses))
    assert (found["model"].step if found else None) == expected


def test_the_width_with_the_least_loss_is_named_and_failed_runs_are_not():
    found = learnt(records([2.3, 2.0], [2.3, 0.1], [2.3, 0.001]))["model"]
    assert (found.step, found.width, found.left) == (1, 256, 0.001)
    (record,) = records([2.3, 0.001])
    record.outcome = Outcome.FAILED
    assert learnt([record]) == {}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "undecided"),
        ({"verdict": "undecided"}, "undecided"),
        ({"step": 1}, "vanishes"),  # its gradient is that of the loss at t=0
        ({"verdict": "blows up"}, "blows up"),
        ({"verdict": "ok"}, "ok"),
        ({"quantity": "activation", "verdict": "initialised too small"}, "initialised too small"),
        ({"label": "another"}, "vanishes"),
    ],
)
def test_what_shrinks_later_is_undecided_and_nothing_else_changes(row, expected):
    found = learnt(records([2.3, 0.01, 0.001]))
    before = table(**row)
    after = without_learnt(before, found)
    assert after["verdict"].item() == expected
    changed = expected == "undecided"
    assert after.equals(before) is not changed
    assert (LATE in after["explanation"].item()) is changed
    assert len(list(notes(after, found))) == changed
    assert np.all(without_learnt(before, {}) == before)
