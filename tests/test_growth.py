"""Deep models: what a diagnosis does grows with the number of layers, and not with its square.

What is counted are calls of functions, and steps of generators, which are the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import pair_batch
from torch import Tensor, nn

import coordcheck
from coordcheck.analysis import culprits as blame
from coordcheck.analysis import diagnosis, roles
from coordcheck.analysis.targets import PARAMETRIZATIONS
from coordcheck.recording.graph import flow, marks
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.wrappers import name_plainly
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.updates.own_updates import OwnUpdates
from coordcheck.recording.updates.parameter_uses import Later, Snapshot, again, parameter_uses
from coordcheck.recording.updates.rows import write_own_updates
from coordcheck.reporting.report import Report
from coordcheck.reporting.text import render
from coordcheck.runs.records import RunKey, RunRecord

FEW = 16
SQUARE = 2.3  # calls for twice the layers: 2 where they grow with them, 4 where with their square


class Block(nn.Module):
    """A block of a residual stream, with attention in it and a parameter that no function is seen to take."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.idle = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        scores = (h @ h.transpose(-2, -1)).softmax(-1)
        return x + self.down((scores @ self.up(h)).relu()) / 8


def stream(layers: int, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), *(Block(width) for _ in range(layers)), nn.Linear(width, 10))


class Deep(NamedTuple):
    """One depth: the model as it was traced, and the report of three widths."""

    model: nn.Module
    tracer: Tracer
    taken: Snapshot
    own: OwnUpdates
    later: Tracer
    report: Report


def deep(layers: int) -> Deep:
    model, (x, y) = stream(layers), pair_batch(examples=3)
    tracer = Tracer(model, keep_calls=True)
    with tracer:
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = frozenset(name for name, p in model.named_parameters() if p.grad is not None)
    later = Tracer(model, gradients=False)
    with later:
        model(x + 1)
    report = coordcheck.diagnose(
        lambda width: (made := stream(layers, width), torch.optim.Adam(made.parameters(), lr=1e-3)),
        (x, y), loss=nn.functional.cross_entropy, widths=(4, 8, 16), seeds=1,
    )  # fmt: skip
    taken = Snapshot(model, tracer, initial, frozenset(initial), seen)
    return Deep(model, tracer, taken, OwnUpdates(model, tracer, initial, seen), later, report)


@pytest.fixture(scope="module")
def two() -> tuple[Deep, Deep]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module in (flow, marks):
            patch.setattr(module, "MOST", 8)  # both are deeper than that
        return deep(FEW), deep(2 * FEW)


def calls(function: Callable[[], Any]) -> int:
    """How many functions are called, and generators resumed, by one function."""
    count = 0

    def counting(frame: Any, event: str, given: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def traced(deep: Deep) -> None:
    with Tracer(deep.model):
        deep.model(pair_batch(examples=3)[0])


def found_again(deep: Deep) -> None:
    seen = Later.of(deep.later)
    for use in deep.own.uses:
        again(use, seen)


def recorded(deep: Deep) -> None:
    with ActivationRecorder(deep.model) as sites, sites.window(0):
        deep.model(pair_batch(examples=3)[0])
    sites.never_called()


def judged(deep: Deep) -> None:
    uses = roles.uses_across_widths(deep.report.records)
    exponents = {finding.use.name: finding.exponents for finding in next(iter(deep.report.findings.values()))}
    kept = [use for use in uses if use.name in exponents]
    diagnosis.diagnose(kept, exponents, PARAMETRIZATIONS["mup"], 0.25)


def blamed(deep: Deep) -> None:
    """Every layer violated, and every parameter to blame."""
    sites = deep.report.verdicts.copy()
    sites["verdict"], sites["order"] = "blows up", range(len(sites))
    found = [f._replace(cause=diagnosis.Cause.INIT) for f in next(iter(deep.report.findings.values()))]
    blame.combined(sites.drop(columns=["cause"]), {deep.report.labels[0]: found}, 0.25)


def written(deep: Deep) -> None:
    record = RunRecord(RunKey("build", 4, 0))
    write_own_updates(deep.own, record, {})
    name_plainly(record)


STAGES = {
    "tracing": traced,
    "uses": lambda deep: parameter_uses(deep.taken),
    "uses again": found_again,
    "recording": recorded,
    "writing": written,
    "roles and findings": judged,
    "causes": blamed,
    "verdicts": lambda deep: Report(deep.report.records, deep.report.criteria).verdicts,
    "text": lambda deep: render(deep.report),
    "JSON": lambda deep: deep.report.to_json(),
}


@pytest.mark.fault(58)
@pytest.mark.parametrize("stage", STAGES)
def test_twice_the_layers_take_twice_the_calls(two, stage):
    for deep in two:
        STAGES[stage](deep)  # what is made at the first call is there
    few, many = (calls(lambda deep=deep: STAGES[stage](deep)) for deep in two)
    print(stage, few, many, many / few)
    assert many < SQUARE * few


def test_a_square_would_be_seen():
    with pytest.raises(AssertionError):
        assert calls(lambda: [any(i == j for j in range(i)) for i in range(80)]) < SQUARE * calls(
            lambda: [any(i == j for j in range(i)) for i in range(40)]
        )


def test_what_is_known_of_a_residual_stream_does_not_grow_with_its_depth(two):
    """Its last tensor depends on every block; each of these is told a bounded number of those that take it up."""
    few, many = (sum(len(use.feeds) for use in deep.tracer.uses.values()) for deep in two)
    assert many < SQUARE * few
    for deep in two:
        found = [use for use in deep.tracer.uses.values() if use.parameter.endswith("down.weight")]
        assert {use.downstream for use in found} == {1 / 8}  # however many sums later it is taken up
        assert all(use.fed for use in found)
