"""Symptoms that no parameter explains, and parameters of which not everything was measured: told, and never passed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_diagnosis import UNKNOWN, exact, judged, measured
from torch import Tensor, nn

from coordcheck import Report, check, diagnose
from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.notes import of_unexplained
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.words import Role

BASE, WIDTHS = 32, (32, 64, 128)
GENERATOR = torch.Generator().manual_seed(0)
BATCH = torch.randn(16, 8, generator=GENERATOR), torch.randint(5, (16,), generator=GENERATOR)
MATRICES = [Role.INPUT, Role.HIDDEN, Role.READOUT, Role.NARROW]


def right(role: Role, **changed: object) -> Exponents:
    gain = -0.5 if role is Role.READOUT else 0.0
    return measured(gain)._replace(**changed)


@pytest.mark.parametrize("role", MATRICES)
@pytest.mark.parametrize("side", ["gain", "response"])
def test_a_matrix_is_right_by_what_was_measured_and_not_by_its_shape_alone(role: Role, side: str) -> None:
    assert judged(role, right(role)).verdict is Verdict.OK
    finding = judged(role, right(role, **{side: UNKNOWN}))
    assert (finding.verdict, finding.cause) == (Verdict.UNDECIDED, None)
    assert f"its {side} could not be measured" in finding.explanation


def test_a_matrix_that_starts_at_zero_has_no_gain_to_measure() -> None:
    assert judged(Role.HIDDEN, measured(zero_init=True)._replace(gain=UNKNOWN)).verdict is Verdict.OK


@pytest.mark.parametrize("role", [Role.VECTOR, Role.CONSTANT])
def test_a_vector_is_right_by_its_own_update(role: Role) -> None:
    assert judged(role, right(role, gain=UNKNOWN)).verdict is Verdict.OK
    assert judged(role, right(role)._replace(response=UNKNOWN)).verdict is Verdict.OK
    unseen = right(role)._replace(response=UNKNOWN, growth=UNKNOWN)
    assert judged(role, unseen).verdict is Verdict.UNDECIDED


def test_logits_without_a_scale_are_not_right() -> None:
    known, unknown = (measured()._replace(gain_weight=gain) for gain in (exact(0.0), UNKNOWN))
    assert judged(Role.ATTENTION, known, fan_in=0.0).verdict is Verdict.OK
    assert judged(Role.ATTENTION, unknown, fan_in=0.0).verdict is Verdict.UNDECIDED


def table(*rows: tuple[str, str | None, str, str | None]) -> pd.DataFrame:
    """Rows (layer, role, verdict, cause) of one label."""
    columns = ["layer", "role", "verdict", "cause"]
    return pd.DataFrame(rows, columns=columns).assign(label="build", order=range(len(rows)))


LAYERS = [("a", None, "ok", None), ("b", None, "blows up", None), ("c", None, "blows up", None)]


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ([("a.weight", "hidden", "ok", None)], "a, b"),
        ([("a.weight", "hidden", "ok", None), ("a.bias", "vector", "not visible", None)], "a.bias"),
        ([("b.weight", "hidden", "undecided", None), ("b.bias", "vector", "not finite", None)], "b.weight, b.bias"),
    ],
)
def test_what_is_not_explained_is_told(parameters: list[tuple[str, str, str, None]], names: str) -> None:
    notes = list(of_unexplained(table(*LAYERS, *parameters), {"build"}))
    assert notes == [f"build: b: blows up; cause not found among: {names}"]
    assert list(of_unexplained(table(*LAYERS, *parameters), set())) == []  # nothing was diagnosed


def test_what_is_explained_or_right_is_not() -> None:
    own = [(layer, role, verdict, "own: b.weight" if verdict != "ok" else None) for layer, role, verdict, _ in LAYERS]
    assert not list(of_unexplained(table(*own, ("b.weight", "hidden", "learns too fast", "lr")), {"build"}))
    assert not list(of_unexplained(table(LAYERS[0], ("a.bias", "vector", "undecided", None)), {"build"}))


class Net(nn.Module):
    """Healthy but for what stands between: a table that is not trained, or a parameter that no diagnosis follows."""

    def __init__(self, width: int, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.mix, self.readout = nn.Linear(8, width), Mix(width, between), nn.Linear(width, 5)
        nn.init.normal_(self.readout.weight, std=BASE**0.5 / width)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.layer_norm(self.mix(torch.relu(self.first(x))), (self.readout.in_features,)))


class Mix(nn.Module):
    def __init__(self, width: int, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.randn(width, width)) if between is times_table else torch.zeros(0)
        self.core = nn.Parameter(torch.randn(width, width)) if between is times_core else None
        self.function = between

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def times_table(s: nn.Module, x: Tensor) -> Tensor:
    return x @ s.table


def times_core(s: nn.Module, x: Tensor) -> Tensor:
    return Product.apply(x, s.core)


class Product(torch.autograd.Function):
    """x @ w, in a function that is not torch's own."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.from_numpy(x.detach().numpy() @ w.detach().numpy())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradient @ w.mT, x.mT @ gradient


def built(between: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[int], object]:
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Net(width, between)
        slow = [p for p in model.parameters() if p.dim() == 2 and p.shape[1] == width]
        rest = [p for p in model.parameters() if all(p is not one for one in slow)]
        return model, torch.optim.Adam([{"params": rest}, {"params": slow, "lr": 1e-3 * BASE / width}], lr=1e-3)

    return build


def checked(between: Callable[[nn.Module, Tensor], Tensor]) -> Report:
    return check(built(between), BATCH, loss=F.cross_entropy, widths=WIDTHS, seeds=2, steps=2)


def diagnosed(between: Callable[[nn.Module, Tensor], Tensor]) -> Report:
    return diagnose(built(between), BATCH, loss=F.cross_entropy, widths=WIDTHS, seeds=2)


@pytest.mark.parametrize(("between", "names"), [(times_table, "first, mix"), (times_core, "mix.core")])
def test_a_planted_fault_that_no_parameter_shows_is_told_everywhere(
    between: Callable[[nn.Module, Tensor], Tensor], names: str, tmp_path: Path
) -> None:
    report = checked(between)
    note = f"build: mix: initialised too large; cause not found among: {names}"
    assert report.culprits.empty
    assert report.exit_code == 1
    assert report.notes[0] == note
    assert note in " ".join(str(report).split())
    report.save_html(tmp_path / "page.html")
    assert note in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert note in json.loads(report.to_json())["notes"]
    assert diagnosed(between).exit_code == (3 if between is times_core else 0)  # its gain is off, and it may be why
