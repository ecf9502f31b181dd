"""What the hooks see, what they leave behind (nothing), and `Recorder` inside a loop of the user's own."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import muon, pair_batch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import coordcheck
from coordcheck.models import mlp
from coordcheck.recording import recorder as recorder_module
from coordcheck.recording import scales
from coordcheck.recording.graph import copies as copies_module
from coordcheck.recording.graph.reading import Reading
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.graph.watching import Watch
from coordcheck.recording.hooks import hooks as hooks_module
from coordcheck.recording.hooks import optimizers as parameters_module
from coordcheck.recording.hooks import wrappers as wrappers_module
from coordcheck.recording.layers import activations as sites_module
from coordcheck.recording.layers import calls as calls_module
from coordcheck.recording.layers import windows as windows_module
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.layers.calls import Reference
from coordcheck.recording.layers.sites import Sites
from coordcheck.recording.layers.spread import SpreadOutputs
from coordcheck.recording.layers.windows import InitialInputs, Window
from coordcheck.recording.recorded_run import RecordedRun
from coordcheck.recording.recorder import Recorder
from coordcheck.recording.step_counter import StepCounter
from coordcheck.recording.training_calls import TrainingCalls
from coordcheck.recording.updates import degrees as degrees_module
from coordcheck.recording.updates import forward_functions as forward_functions_module
from coordcheck.recording.updates import gradients as gradients_module
from coordcheck.recording.updates import in_loop as live_module
from coordcheck.recording.updates import norms as norms_module
from coordcheck.recording.updates import own_updates as own_updates_module
from coordcheck.recording.updates import parameter_uses as uses_module
from coordcheck.recording.updates import rows as rows_module
from coordcheck.recording.updates import values as values_module
from coordcheck.recording.updates.in_loop import OwnUpdatesInLoop
from coordcheck.recording.updates.own_updates import OwnUpdates
from coordcheck.recording.updates.replays import FunctionReplay
from coordcheck.recording.updates.scale_table import ScaleTable
from coordcheck.recording.updates.values import Scratch
from coordcheck.runs import files as runfiles_module
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import Row, RunRecord
from coordcheck.runs.words import Kind, Outcome, Quantity, Status
from coordcheck.training.trials import seed_everything

INNER = (16, 32, 64)  # widths of the small MLPs trained here


class Lambda(nn.Module):
    """A linear layer, then any function of its output."""

    def __init__(self, after: Callable[[Tensor], Any], size: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.linear(x))


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rms(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


def recorded(model: nn.Module, *steps: Tensor) -> ActivationRecorder:
    """The model called once per window: the t-th input at step t."""
    with ActivationRecorder(model) as sites:
        for step, x in enumerate(steps):
            with sites.window(step):
                model(x)
    return sites


def rows_of(found: ActivationRecorder | Recorder) -> dict[tuple[str, int, str], Row]:
    """Every row by (layer, step, quantity); no two rows may share one."""
    sites, rows = (
        (list(found.sites.values()), found.rows)
        if isinstance(found, ActivationRecorder)
        else (found.record.sites, found.record.rows)
    )
    table = {(sites[row.site].layer, row.step, row.quantity.value): row for row in rows}
    assert len(table) == len(rows)
    return table


def hook_count(*owners: Any) -> int:
    """All hooks of all modules and optimizers, of every kind torch keeps."""
    modules = [m for owner in owners for m in (owner.modules() if isinstance(owner, nn.Module) else [owner])]
    return sum(len(v) for m in modules for name, v in vars(m).items() if "hooks" in name and isinstance(v, dict))


# What is recorded, and under which name


@dataclass
class Pair:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Named(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("after", "layers"),
    [
        (lambda h: h + 1, ["(model)"]),
        (lambda h: (h + 1, h + 2), ["(model):out[0]", "(model):out[1]"]),
        (lambda h: [h + 1, None, h + 2], ["(model):out[0]", "(model):out[2]"]),
        (lambda h: {"a": h + 1, "b": h + 2}, ["(model):out['a']", "(model):out['b']"]),
        (lambda h: Named(h + 1, h + 2), ["(model):out.first", "(model):out.second"]),
        (lambda h: Pair(h + 1, (h + 2,)), ["(model):out.logits", "(model):out.hidden[0]"]),
        (lambda h: {"a": [h + 1, (h + 2, None)]}, ["(model):out['a'][0]", "(model):out['a'][1][0]"]),
        (lambda h: nn.Parameter(h + 1), ["(model)"]),
        (lambda h: None, []),
        (lambda h: 3, []),
        (lambda h: (), []),
    ],
    ids=["tensor", "tuple", "list", "dict", "namedtuple", "dataclass", "nested", "parameter", "None", "int", "empty"],
)
def test_every_tensor_of_an_output_is_a_layer(after, layers):
    model = Lambda(after)
    sites = recorded(model, tensor(3, 4))
    hidden = model.linear(tensor(3, 4))
    rows = rows_of(sites)
    assert list(sites.sites) == ["linear", *layers]
    for plus, layer in enumerate(layers, start=1):
        assert rows[layer, 0, "activation"].value == pytest.approx(rms(hidden + plus), rel=1e-6)


def test_an_output_without_dimensions_is_measured_at_every_step():
    model, x = Lambda(lambda h: (h.mean(), h)), tensor(3, 4)
    with ActivationRecorder(model) as sites:
        for step in range(3):
            with sites.window(step):
                mean = model(x)[0]
            if step == 0:
                before = mean.item()
                with torch.no_grad():
                    model.linear.bias += 1
    rows = rows_of(sites)
    for step in (1, 2):
        assert rows["(model):out[0]", step, "activation"].value == pytest.approx(abs(before + 1), rel=1e-5)
        assert rows["(model):out[0]", step, "mean_abs"].value == pytest.approx(abs(before + 1), rel=1e-5)
        assert rows["(model):out[0]", step, "change"].value == pytest.approx(1.0, rel=1e-5)


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("after", "skipped"),
    [
        (lambda h: 3, {"an output of type int": 1}),
        (lambda h: (h, "name", True, None), {"an output of type str": 1, "an output of type bool": 1}),
        (lambda h: [[[[[[[[[h]]]]]]]]], {"an output of type list": 1}),
        (lambda h: None, {}),
    ],
    ids=["int", "mixed", "too deep", "None"],
)
def test_what_is_not_a_tensor_is_counted(after, skipped):
    assert recorded(Lambda(after), tensor(2, 4)).skipped == skipped


def test_two_keys_of_one_text_are_two_layers():
    sites = recorded(Lambda(lambda h: {1: h + 1, "1": h + 2}), tensor(3, 4))
    assert len(rows_of(sites)) == 3 * 2


@pytest.mark.parametrize(
    ("after", "status"),
    [
        (lambda h: h.argmax(-1), Status.INTEGER),
        (lambda h: h > 0, Status.INTEGER),
        (lambda h: h[:0], Status.EMPTY),
        (lambda h: h * math.nan, Status.NAN),
        (lambda h: h / 0, Status.INF),
        (lambda h: h * 0, Status.ZERO),
    ],
    ids=["integer", "bool", "empty", "nan", "inf", "zero"],
)
def test_an_output_without_a_scale_is_a_row_that_says_why(after, status):
    row = rows_of(recorded(Lambda(after), tensor(2, 4)))["(model)", 0, "activation"]
    assert row.status is status
    assert row.value == (0.0 if status is Status.ZERO else None)


@pytest.mark.fault(26)
def test_a_reused_module_is_one_layer_per_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.layer(self.layer(x))

    model, x = Twice(), tensor(3, 4)
    sites = recorded(model, x, x)
    rows = rows_of(sites)
    assert list(sites.sites) == ["layer", "layer#2", "(model)"]
    for step in (0, 1):
        assert rows["layer", step, "activation"].value == pytest.approx(rms(model.layer(x)), rel=1e-6)
        assert rows["layer#2", step, "activation"].value == pytest.approx(rms(model.layer(model.layer(x))), rel=1e-6)


def test_shapes_dtypes_and_both_statistics():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).double()
    x = tensor(3, 4).double()
    sites = recorded(model, x)
    hidden = model[0](x)
    assert [(s.shape, s.dtype) for s in sites.sites.values()] == [
        ((3, 6), "float64"),
        ((3, 2), "float64"),
        ((3, 2), "float64"),
    ]
    assert rows_of(sites)["0", 0, "activation"].value == pytest.approx(rms(hidden), rel=1e-12)
    assert rows_of(sites)["0", 0, "mean_abs"].value == pytest.approx(float(hidden.detach().abs().mean()), rel=1e-12)


@pytest.mark.fault(46)
def test_autocast_is_told_by_the_dtype():
    model = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        sites = recorded(model, tensor(3, 4))
    assert sites.sites["(model)"].dtype == "bfloat16"
    assert rows_of(sites)["(model)", 0, "activation"].value == pytest.approx(rms(model(tensor(3, 4))), rel=0.02)


def test_models_of_mixed_precision():
    model = nn.Sequential(nn.Linear(4, 4), Lambda(lambda h: h.double()), nn.Linear(4, 4).double())
    rows = rows_of(recorded(model, tensor(3, 4)))
    assert rows["1.linear", 0, "activation"].value == pytest.approx(rows["1", 0, "activation"].value, rel=1e-6)


def test_a_hook_of_the_user_that_replaces_the_output_runs_first():
    model = nn.Linear(4, 4)
    model.register_forward_hook(lambda module, args, output: output * 0 + 7)
    assert rows_of(recorded(model, tensor(2, 4)))["(model)", 0, "activation"].value == pytest.approx(7.0)


# Passthrough and in-place


@pytest.mark.parametrize(
    ("model", "passing", "source"),
    [
        (nn.Sequential(nn.Linear(4, 4)), "(model)", "0"),
        (nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU()), "1", "0"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU()), "0", "0.0"),
        (Lambda(lambda h: {"h": h}), "(model):out['h']", "linear"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5).eval(), nn.ReLU()), "1", "0"),
    ],
    ids=["root", "Identity", "container", "dict", "dropout in eval mode"],
)
def test_a_module_that_hands_on_a_tensor_is_a_passthrough_of_its_source(model, passing, source):
    sites = recorded(model, tensor(3, 4), tensor(3, 4))
    rows = rows_of(sites)
    assert sites.sites[passing].kind is Kind.PASSTHROUGH
    assert sites.sites[source].kind is Kind.MODULE
    for step, quantity in [(0, "activation"), (0, "mean_abs"), (1, "activation"), (1, "change")]:
        assert rows[passing, step, quantity].value == rows[source, step, quantity].value


def test_an_in_place_relu_is_not_a_passthrough():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), tensor(5, 4)
    sites = recorded(model, x)
    rows, before = rows_of(sites), model[0](x)
    assert [site.kind for site in sites.sites.values()] == [Kind.MODULE, Kind.MODULE, Kind.PASSTHROUGH]
    assert rows["0", 0, "activation"].value == pytest.approx(rms(before), rel=1e-6)
    assert rows["1", 0, "activation"].value == pytest.approx(rms(before.relu()), rel=1e-6)


def test_identity_of_the_input_is_not_a_passthrough():
    assert recorded(nn.Identity(), tensor(3, 4)).sites["(model)"].kind is Kind.MODULE


@pytest.mark.fault(37)
@pytest.mark.fault(37)
def test_in_place_operations_after_the_hook_change_nothing():
    model, x = Lambda(lambda h: h.mul_(100).add_(5)), tensor(3, 4)
    rows = rows_of(recorded(model, x, x))
    assert rows["linear", 0, "activation"].value == pytest.approx(rms(model.linear(x)), rel=1e-6)
    assert rows["linear", 1, "change"].value == 0.0


# Calls that differ between steps


class Skipping(nn.Module):
    """Calls `extra` only when `on`."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.first, self.extra, self.on = nn.Linear(4, 4), nn.Linear(4, 4), on

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return (self.extra(x) if self.on else x) * 1


@pytest.mark.fault(27)
@pytest.mark.parametrize("at_first", [True, False])
def test_a_skipped_module_is_told_as_not_called(at_first):
    model, x = Skipping(at_first), tensor(3, 4)
    with ActivationRecorder(model) as sites:
        for step in range(3):
            model.on = at_first is (step == 0)
            with sites.window(step):
                model(x)
    rows = rows_of(sites)
    not_called = {(layer, step, q) for (layer, step, q), row in rows.items() if row.status is Status.NOT_CALLED}
    without_row = {("extra", 1, "activation"), ("extra", 2, "activation")}
    without_reference = {("extra", 1, "change"), ("extra", 2, "change")}
    assert not_called == (without_row if at_first else without_reference)


def test_a_passthrough_that_later_computes_keeps_its_reference():
    model, x = Lambda(lambda h: h), tensor(3, 4)
    with ActivationRecorder(model) as sites:
        for step in range(2):
            with sites.window(step):
                model(x)
            model.after = lambda h: h * 3
    change = rows_of(sites)["(model)", 1, "change"]
    assert change.value == pytest.approx(2 * rms(model.linear(x)), rel=1e-6)


def test_modules_never_called_are_known():
    model = Skipping(False)
    sites = recorded(model, tensor(3, 4))
    assert sites.never_called() == {"extra"}


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.fault(45)
def test_checkpointed_calls_are_counted_once(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=reentrant) * 2

    model, x = Checkpointed(), tensor(3, 4).requires_grad_()
    forwards = []
    model.block[0].register_forward_pre_hook(lambda *_: forwards.append(1))
    with ActivationRecorder(model) as sites, sites.window(0):
        model(x).sum().backward()
    assert len(forwards) == 2
    assert list(sites.sites) == ["block.0", "block.1", "block", "(model)"]
    assert rows_of(sites)["block.0", 0, "activation"].value == pytest.approx(rms(model.block[0](x)), rel=1e-6)


def test_calls_outside_a_window_are_not_recorded():
    model, x = nn.Linear(4, 4), tensor(3, 4)
    with ActivationRecorder(model) as sites:
        model(x)
        with sites.window(0):
            model(x)
        model(x)
    assert len(rows_of(sites)) == 2


# The change


def test_the_change_of_a_linear_model_after_a_step_of_sgd_is_the_closed_form():
    lr, x, c = 0.1, tensor(6, 4), tensor(6, 3, seed=1)
    model = nn.Linear(4, 3, bias=False)
    optimizer = SGD(model.parameters(), lr=lr)
    with ActivationRecorder(model) as sites:
        for step in range(11):
            with sites.window(step):
                loss = (model(x) * c).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for step in range(1, 11):
        # dL/dW = c^T x at every step, so h_t - h_0 = -t lr x x^T c
        expected = step * lr * float((x @ x.T @ c).norm()) / math.sqrt(6 * 3)
        assert rows_of(sites)["(model)", step, "change"].value == pytest.approx(expected, rel=1e-5)
    assert ("(model)", 0, "change") not in rows_of(sites)


def test_a_frozen_model_has_a_change_of_exactly_zero():
    x = tensor(3, 4)
    rows = rows_of(recorded(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x, x, x))
    changes = [row for (_, _, quantity), row in rows.items() if quantity == "change"]
    assert len(changes) == 3 * 2
    assert {(row.value, row.status) for row in changes} == {(0.0, Status.ZERO)}


def test_a_moved_input_is_told_and_only_then():
    x, other = tensor(3, 4), tensor(3, 4, seed=1)
    rows = rows_of(recorded(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x, other, x.clone()))
    assert rows["0", 1, "change"] == Row(0, 1, Quantity.CHANGE, None, Status.MOVED_INPUT)
    assert rows["1", 1, "change"].status is Status.MOVED_INPUT
    assert rows["0", 1, "activation"].status is Status.OK
    assert rows["0", 2, "change"].status is Status.ZERO


def test_an_input_that_moves_inside_a_mapping_is_told():
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, *, batch: dict[str, Tensor]) -> Tensor:
            return self.layer(batch["x"])

    model = Keywords()
    with ActivationRecorder(model) as sites:
        for step in range(2):
            with sites.window(step):
                model(batch={"x": tensor(3, 4, seed=step)})
    assert rows_of(sites)["layer", 1, "change"].status is Status.MOVED_INPUT


def test_an_input_buffer_that_is_filled_anew_is_told():
    model, buffer = nn.Linear(4, 4), tensor(3, 4)
    with ActivationRecorder(model) as sites:
        for step in range(2):
            with sites.window(step):
                model(buffer.copy_(tensor(3, 4, seed=step)))
    assert rows_of(sites)["(model)", 1, "change"].status is Status.MOVED_INPUT


def test_an_output_of_another_shape_has_no_change():
    rows = rows_of(recorded(nn.Linear(4, 4), tensor(3, 4), tensor(5, 4)))
    assert rows["(model)", 1, "change"].status is Status.SHAPE_CHANGED


@pytest.mark.parametrize(
    ("then", "now"), [(2400, 2399), (61, 1024), (1024, 61)], ids=["one row less", "many more", "many less"]
)
def test_a_large_output_of_another_shape_has_no_change(then, now):
    """The model's input stays: only what is routed to the layer changes."""

    class Routed(nn.Module):
        rows = then

        def forward(self, x: Tensor) -> Tensor:
            return x[: self.rows] * 2

    model, x = Routed(), tensor(2400, 64)
    with ActivationRecorder(model) as sites:
        for step in range(2):
            with sites.window(step):
                model(x)
            model.rows = now
    rows = rows_of(sites)
    assert rows["(model)", 1, "activation"].value == pytest.approx(2 * rms(x[:now]), rel=1e-5)
    assert rows["(model)", 1, "change"].status is Status.SHAPE_CHANGED


def test_the_change_of_a_large_output_is_close_to_the_whole():
    model = nn.Linear(64, 128, bias=False)
    x = tensor(2000, 64)
    with ActivationRecorder(model) as sites:
        for step in range(2):
            with sites.window(step):
                output = model(x)
            if step == 0:
                before = output.detach()
                with torch.no_grad():
                    model.weight += 0.01 * tensor(128, 64, seed=1)
    assert rows_of(sites)["(model)", 1, "change"].value == pytest.approx(rms(output - before), rel=0.05)


# Nothing left behind, nothing raised


def test_hooks_are_gone_after_the_block():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()))
    model[0].register_forward_hook(lambda *_: None)
    before = hook_count(model)
    with ActivationRecorder(model):
        assert hook_count(model) > before
    assert hook_count(model) == before == 1


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raise_


@pytest.mark.fault(21)
def test_hooks_are_gone_after_an_exception_in_forward():
    model = nn.Sequential(nn.Linear(4, 4), Lambda(raising(ZeroDivisionError("in forward"))))
    with pytest.raises(ZeroDivisionError, match="in forward"):
        recorded(model, tensor(2, 4))
    assert hook_count(model) == 0


@pytest.mark.parametrize("broken", ["rms_and_mean_abs", "sampled_copy", "rms", "mean_abs", "measurable"])
def test_a_statistic_that_fails_is_a_status(monkeypatch, broken):
    if broken in ("rms", "mean_abs"):  # these work on devices, from copies that are reduced later
        monkeypatch.setattr(scales, "IN_MEMORY", set())
    monkeypatch.setattr(scales, broken, raising(RuntimeError("broken")))
    sites = recorded(nn.Linear(4, 4), tensor(2, 4), tensor(2, 4))
    rows = rows_of(sites)
    assert {row.status for row in rows.values()} == {Status.UNSUPPORTED}
    assert [step for _, step, _ in rows] == [0, 1]


@pytest.mark.parametrize("whole", [0, 2**15])
def test_reducing_later_as_on_a_device_gives_the_same_scales(monkeypatch, whole):
    def rows():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(inplace=True), nn.Linear(300, 10), nn.Identity())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with ActivationRecorder(model) as sites:
            for step in range(10):  # more windows than are kept
                with sites.window(step):
                    loss = model(normal).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return sites.rows

    normal = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    at_once = rows()
    monkeypatch.setattr(scales, "IN_MEMORY", set())
    monkeypatch.setattr(calls_module, "WHOLE_COORDINATES", whole)
    later = rows()
    assert [row._replace(value=None) for row in later] == [row._replace(value=None) for row in at_once]
    assert [row.value for row in later] == pytest.approx([row.value for row in at_once], rel=1e-5)


@dataclass
class HalfFilled:
    logits: Tensor
    cache: Tensor = field(init=False)


def fake_inputs(model: nn.Module) -> ActivationRecorder:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return recorded(model, torch.zeros(3, 4), torch.zeros(3, 4))


def in_inference_mode(model: nn.Module) -> ActivationRecorder:
    with torch.inference_mode():
        return recorded(model, tensor(3, 4), tensor(3, 4))


def in_vmap(model: nn.Module) -> ActivationRecorder:
    with ActivationRecorder(model) as sites, sites.window(0):
        torch.vmap(model)(tensor(3, 4))
    return sites


def with_input(convert: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], ActivationRecorder]:
    return lambda model: recorded(model, *[convert(tensor(3, 4)) for _ in range(2)])


def ragged(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda h: torch.nested.nested_tensor([h[:1], h[1:]], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize(
    ("model", "call"),
    [
        (Lambda(torch.relu), in_inference_mode),
        (Lambda(torch.relu).to("meta"), with_input(lambda x: x.to("meta"))),
        (Lambda(torch.relu), fake_inputs),
        (Lambda(torch.relu), in_vmap),
        (Lambda(ragged(torch.strided)), with_input(Tensor.clone)),
        (Lambda(ragged(torch.jagged)), with_input(Tensor.clone)),
        (Lambda(HalfFilled), with_input(Tensor.clone)),
        (Lambda(torch.Tensor.to_sparse), with_input(Tensor.clone)),
        (Lambda(torch.relu), with_input(ragged(torch.strided))),
        (Lambda(torch.relu), with_input(ragged(torch.jagged))),
    ],
    ids=["inference", "meta", "fake", "vmap", "nested", "jagged", "unset field", "sparse", "nested in", "jagged in"],
)
def test_what_cannot_be_read_never_raises_into_the_model(model, call):
    sites = call(model)
    assert {row.status for row in sites.rows} <= {Status.OK, Status.ZERO, Status.UNSUPPORTED, Status.MOVED_INPUT}
    assert "linear" in sites.sites
    assert hook_count(model) == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["COO", "CSR"])
def test_a_sparse_input_is_recorded(convert):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(tensor(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(x, self.weight)

    model = Product()
    rows = rows_of(recorded(model, *[convert(tensor(3, 4)) for _ in range(2)]))
    assert rows["(model)", 0, "activation"].value == pytest.approx(rms(tensor(3, 4) @ model.weight), rel=1e-6)
    assert rows["(model)", 1, "activation"].status is Status.OK


def test_a_jagged_output_can_be_saved(tmp_path):
    model = Lambda(lambda h: ragged(torch.jagged)(h) * 1)
    with Recorder(model, SGD(model.parameters(), lr=0.1), width=4, steps=0, save_to=tmp_path) as found:
        model(tensor(3, 4))
    assert json.loads(json.dumps(found.record.to_json()))["sites"][-1][0] == "(model)"


@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(nn.Linear(4, 4), m)], ids=["root", "inside"])
def test_a_script_module_is_refused_and_leaves_no_hooks(wrap):
    model = wrap(torch.jit.script(nn.Linear(4, 4)))
    with pytest.raises(coordcheck.CoordCheckError, match="ScriptModule"):
        recorded(model, tensor(2, 4))
    assert sum(hook_count(m) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)) == 0


def compiled(inside: bool) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.compile()
    return nn.Sequential(layer) if inside else torch.compile(nn.Linear(4, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_is_refused(inside):
    with pytest.raises(coordcheck.CoordCheckError, match="compiled"):
        ActivationRecorder(compiled(inside))


# Recorder, in a loop of the user's own


def trained(seed: int = 0, width: int = 16) -> tuple[nn.Module, torch.optim.Optimizer]:
    seed_everything(seed)
    return mlp("SP", lr=3e-3)(width)


def train(model: nn.Module, optimizer: Any, updates: int, batch: Any = None) -> list[float]:
    """An ordinary loop, which knows nothing of recorders."""
    x, y = batch or pair_batch()
    losses = []
    for _ in range(updates):
        loss = F.cross_entropy(model(x), y)
        for each in optimizer if isinstance(optimizer, list) else [optimizer]:
            each.zero_grad()
        loss.backward()
        for each in optimizer if isinstance(optimizer, list) else [optimizer]:
            each.step()
        losses.append(float(loss.detach()))
    return losses


def test_recorder_stops_after_its_steps():
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=2) as found:
        train(model, optimizer, updates=6)
    assert {step for _, step, _ in rows_of(found)} == {0, 1, 2}
    assert found.record.finished


def test_recorder_adds_nothing_to_the_training():
    losses = train(*trained(), updates=5)
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=3):
        assert train(model, optimizer, updates=5) == losses


def test_gradient_accumulation_records_the_first_micro_batch():
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    first, second = tensor(3, 4), 10 * tensor(3, 4, seed=1)
    expected = []
    with Recorder(model, optimizer, width=4, steps=2) as found:
        for _ in range(4):
            expected.append(rms(F.linear(first, model.weight, model.bias)))
            for micro_batch in (first, second):
                model(micro_batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = rows_of(found)
    assert {layer for layer, _, _ in rows} == {"(model)", "weight", "bias"}
    for step in range(3):
        assert rows["(model)", step, "activation"].value == pytest.approx(expected[step], rel=1e-6)
    assert rows["(model)", 2, "change"].status is Status.OK


def test_several_optimizers_count_one_step_together():
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=2) as alone:
        train(model, optimizer, updates=3)
    model, _ = trained()
    halves = [torch.optim.Adam(half, lr=3e-3) for half in (list(model.parameters())[:3], list(model.parameters())[3:])]
    with Recorder(model, halves, width=16, steps=2) as together:
        train(model, halves, updates=3)
    assert together.record.rows == alone.record.rows
    assert together.record.parameters == alone.record.parameters
    assert hook_count(model, *halves) == 0


@pytest.mark.fault(53)
def test_recorder_tells_learning_rates_and_untrained_parameters():
    model, _ = trained()
    optimizer = SGD(model.readout.parameters(), lr=0.25, weight_decay=0.5)
    with Recorder(model, optimizer, width=16) as found:
        train(model, optimizer, updates=1)
    held = {info.name: (info.learning_rate, info.weight_decay) for info in found.record.parameters}
    assert held["readout.weight"] == (0.25, 0.5)
    assert held["input.weight"] == (None, None)


@pytest.mark.fault(56)
def test_a_moving_batch_is_told_in_the_own_loop():
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=2) as found:
        for seed in range(3):
            train(model, optimizer, updates=1, batch=pair_batch(seed))
    assert rows_of(found)["input", 1, "change"].status is Status.MOVED_INPUT


@pytest.fixture(scope="module")
def checked() -> coordcheck.Report:
    torch.set_num_threads(1)
    return coordcheck.check(
        mlp("SP", lr=3e-3), pair_batch(), loss=F.cross_entropy, widths=INNER, seeds=2, steps=3, probe=None
    )


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> coordcheck.Report:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        for width in INNER:
            model, optimizer = trained(seed, width)
            with Recorder(model, optimizer, width=width, seed=seed, steps=3, own_updates=False, save_to=folder):
                train(model, optimizer, updates=5)
    return coordcheck.load(folder)


def test_run_files_of_own_loops_merge_into_the_report_of_check(checked, merged):
    by_key = {record.key: record for record in checked.records}
    assert len(merged.records) == len(by_key) == 6
    for record in merged.records:
        assert record.rows == by_key[record.key].rows
        assert record.sites == by_key[record.key].sites
        trained = by_key[record.key].parameters  # whose first updates a recorder without own updates does not look at
        assert record.parameters == [info._replace(gradient=None, update=None) for info in trained]


def test_verdicts_of_own_loops_are_those_of_check(checked, merged):
    assert not merged.verdicts.empty
    pd.testing.assert_frame_equal(merged.verdicts, checked.verdicts)
    assert merged.exit_code == checked.exit_code


# Loops of every kind. Each marks with `note` the outputs that belong to t=0, 1, 2, ... and knows nothing else

Note = Callable[[Tensor], Any]
Recording = Callable[[nn.Module, Any], Any]
X, Y = tensor(6, 4), tensor(6, 3, seed=1)
OTHER = 5 * tensor(6, 4, seed=2)


def net(between: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), between or nn.Tanh(), nn.Linear(8, 3))


def noted(note: Note, output: Tensor) -> Tensor:
    note(output)
    return output


def loss_of(output: Tensor) -> Tensor:
    return (output - Y).square().mean()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            descend(optimizer, loss_of(noted(note, model(X))))
    return model


def accumulated(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for micro_step in range(15):
            output = model(X if micro_step % 3 == 0 else OTHER)
            if micro_step % 3 == 0:
                note(output)
            loss_of(output).backward()
            if micro_step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    return model


def autocast(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(noted(note, model(X)))
            descend(optimizer, loss)
    return model


def scaled(optimizer_of: Callable[..., torch.optim.Optimizer], overflows: tuple[int, ...]) -> Any:
    def loop(recording: Recording, note: Note) -> nn.Module:
        model = net()
        optimizer, scaler = optimizer_of(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
        with recording(model, optimizer):
            retried = False
            for iteration in range(7):
                output = model(X)
                if not retried:  # a step that was skipped moved nothing: the same t again
                    note(output)
                optimizer.zero_grad()
                retried = iteration in overflows
                scaler.scale(loss_of(output) * (math.inf if retried else 1)).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
        return model

    return loop


def checkpointed(reentrant: bool, whole: bool) -> Any:
    def loop(recording: Recording, note: Note) -> nn.Module:
        model = net()
        first, batch = model[0], X.clone().requires_grad_()
        if not whole:
            inner = first.forward
            first.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
        optimizer = SGD(model.parameters(), lr=0.1)
        with recording(model, optimizer):
            for _ in range(5):
                output = checkpoint(model, batch, use_reentrant=reentrant) if whole else model(batch)
                descend(optimizer, loss_of(noted(note, output)))
        return model

    return loop


def together(order: int, muon_every: int = 1) -> Any:
    def loop(recording: Recording, note: Note) -> nn.Module:
        model = net()
        matrices = [p for p in model.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() != 2]
        of_matrices, of_others = muon(matrices, lr=0.1), torch.optim.AdamW(rest, lr=0.1)
        optimizers = [of_matrices, of_others][::order]
        with recording(model, optimizers):
            for iteration in range(5):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss_of(noted(note, model(X))).backward()
                for optimizer in optimizers:
                    if iteration % muon_every == 0 or optimizer is of_others:
                        optimizer.step()
        return model

    return loop


def taking_turns(recording: Recording, note: Note) -> nn.Module:
    """One optimizer at one iteration, the other at the next: every update is one."""
    model = net()
    optimizers = [SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    with recording(model, optimizers):
        for iteration in range(5):
            descend(optimizers[iteration % 2], loss_of(noted(note, model(X))))
    return model


def warmed_up(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 2, 1.0))
    with recording(model, optimizer):
        for _ in range(5):
            descend(optimizer, loss_of(noted(note, model(X))))
            schedule.step()
    return model


def with_closure(optimizer_of: Callable[..., torch.optim.Optimizer]) -> Any:
    def loop(recording: Recording, note: Note) -> nn.Module:
        model = net()
        optimizer = optimizer_of(model.parameters())
        with recording(model, optimizer):
            for _ in range(5):
                calls = []

                def closure(calls: list[Tensor] = calls) -> Tensor:
                    calls.append(model(X))
                    if len(calls) == 1:
                        note(calls[0])
                    optimizer.zero_grad()
                    loss = loss_of(calls[-1])
                    loss.backward()
                    return loss

                optimizer.step(closure)
        return model

    return loop


def evaluated(between: Callable[[nn.Module], None]) -> Any:
    def loop(recording: Recording, note: Note) -> nn.Module:
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with recording(model, optimizer):
            for _ in range(5):
                between(model)
                descend(optimizer, loss_of(noted(note, model(X))))
                between(model)
        return model

    return loop


def without_gradients(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(OTHER)
    model.train()


def forgetting_no_grad(model: nn.Module) -> None:
    model.eval()
    model(OTHER)
    model.train()


def in_inference(model: nn.Module) -> None:
    with torch.inference_mode():
        model(OTHER[:2])


def sampling(model: nn.Module) -> None:
    with torch.no_grad():  # as reinforcement learning does, in training mode
        model(OTHER)
        model[0](OTHER)


def out_of_memory_once(model: nn.Module) -> None:
    inner = model[2].forward
    model[2].forward = raising(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(OTHER)
    model[2].forward = inner


def traced(model: nn.Module) -> None:
    torch.jit.trace(model, OTHER)


def contrastive(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            first, second = noted(note, model(X)), model(OTHER)
            descend(optimizer, loss_of(first) + (first * second).mean())
    return model


def in_evaluation_mode(recording: Recording, note: Note) -> nn.Module:
    model = net().eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            descend(optimizer, loss_of(noted(note, model(X))))
            with torch.no_grad():
                model(OTHER)
    return model


def in_the_backward_pass(recording: Recording, note: Note) -> nn.Module:
    """One optimizer per parameter, which steps as soon as its gradient is there."""
    model = net()
    optimizers = {p: torch.optim.Adam([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with recording(model, list(optimizers.values())):
        for _ in range(5):
            loss_of(noted(note, model(X))).backward()
    return model


class Nested(torch.optim.Adam):
    """A step inside a step: torch runs the hooks of both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def stepping_twice_inside(recording: Recording, note: Note) -> nn.Module:
    model = net()
    torch.optim.Adam(model.parameters())  # from its first instance on, its own step runs the hooks
    optimizer = Nested(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            descend(optimizer, loss_of(noted(note, model(X))))
    return model


def averaged(recording: Recording, note: Note) -> nn.Module:
    """Averages of the weights, made and called while the hooks are on."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        average = None
        for _ in range(5):
            descend(optimizer, loss_of(noted(note, model(X))))
            average = average or torch.optim.swa_utils.AveragedModel(model)
            average.update_parameters(model)
            loss_of(average(OTHER))
            loss_of(copy.deepcopy(model)(OTHER))
            pickle.loads(pickle.dumps(model))(OTHER)
            copy.deepcopy(optimizer).step()
    return model


def interrupted_step(recording: Recording, note: Note) -> nn.Module:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer):
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                optimizer.step(raising(ZeroDivisionError("in the closure")))
            descend(optimizer, loss_of(noted(note, model(X))))
    return model


NOT_CALLED = "own updates were not recorded: the model itself was not called in training before and after an update"
LOOPS = {
    "plain": plain,
    "accumulation": accumulated,
    "autocast": autocast,
    "scaler": scaled(lambda p: torch.optim.Adam(p, lr=0.1), ()),
    "scaler, overflow": scaled(lambda p: torch.optim.Adam(p, lr=0.1), (0, 3)),
    "scaler, overflow, fused": scaled(lambda p: torch.optim.Adam(p, lr=0.1, fused=True), (0, 3)),
    "checkpoint": checkpointed(reentrant=False, whole=False),
    "reentrant checkpoint": checkpointed(reentrant=True, whole=False),
    "checkpoint of the whole": checkpointed(reentrant=False, whole=True),
    "reentrant checkpoint of the whole": checkpointed(reentrant=True, whole=True),
    "Muon and AdamW": together(1),
    "AdamW and Muon": together(-1),
    "Muon at every second step": together(1, muon_every=2),
    "optimizers taking turns": taking_turns,
    "warm-up from 0": warmed_up,
    "LBFGS": with_closure(lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3)),
    "closure": with_closure(lambda p: SGD(p, lr=0.1)),
    "evaluation": evaluated(without_gradients),
    "evaluation with gradients": evaluated(forgetting_no_grad),
    "inference mode": evaluated(in_inference),
    "sampling": evaluated(sampling),
    "forward that raises": evaluated(out_of_memory_once),
    "trace": evaluated(traced),
    "contrastive": contrastive,
    "evaluation mode": in_evaluation_mode,
    "optimizer in backward": in_the_backward_pass,
    "step inside a step": stepping_twice_inside,
    "averages": averaged,
    "step that raises": interrupted_step,
}


def states(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_is_recorded_as_it_is_and_trains_as_without(loop):
    expected: list[float] = []
    weights: list[Tensor] = []
    models: list[nn.Module] = []

    def unrecorded(model: nn.Module, optimizer: Any) -> Any:
        models.append(model)
        return nullcontext()

    def note(output: Tensor) -> None:
        expected.append(rms(output))
        weights.append(models[0][0].weight.detach().clone())

    bare = states(loop(unrecorded, note))
    opened: list[Recorder] = []
    owners: list[Any] = []

    def recording(model: nn.Module, optimizer: Any) -> Recorder:
        opened.append(Recorder(model, optimizer, width=8, steps=3))
        owners.extend([model, *(optimizer if isinstance(optimizer, list) else [optimizer])])
        return opened[0]

    model = loop(recording, lambda output: None)
    record, rows = opened[0].record, rows_of(opened[0])
    assert all(map(torch.equal, states(model), bare))
    assert [site.layer for site in record.sites][:4] == ["0", "1", "2", "(model)"]
    found = [rows["(model)", t, "activation"].value for t in range(4)]
    assert found == pytest.approx(expected[:4], rel=1e-5)
    assert {row.status for row in rows.values()} <= {Status.OK, Status.ZERO}
    assert {t for _, t, _ in rows} == {0, 1, 2, 3}
    own = [rows["0.weight", t, "own_update"].value for t in (1, 2) if ("0.weight", t, "own_update") in rows]
    assert own == pytest.approx([rms(X @ (weights[t] - weights[0]).T) for t in (1, 2)][: len(own)], rel=0.02)
    assert len(set(expected)) > 2  # it trains, so that a step more or less would be seen
    assert record.finished
    told = [note for note in record.notes if "gradient's size" not in note]  # an optimizer that needs a closure
    assert told == ([] if own else [NOT_CALLED])
    assert len(record.parameters) == 4
    assert opened[0].done
    assert hook_count(*owners) == 0


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpoint", "reentrant checkpoint"])
def test_a_model_that_is_never_called_itself_is_recorded_up_to_the_backward_pass(reentrant):
    """As in frameworks that call a method of the model: accumulation, evaluation and a moving batch are seen."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        hidden = model[0](x)
        active = model[1](hidden) if reentrant is None else checkpoint(model[1], hidden, use_reentrant=reentrant)
        return model[2](active)

    model, expected = net(), []
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=8, steps=3) as found:
        for iteration in range(5):
            model.eval()
            with torch.no_grad():
                model[2](model[0](OTHER))
            model.train()
            expected.append(rms(F.linear(X, *model[0].parameters())))
            for micro_batch in (X if iteration < 3 else OTHER, OTHER):
                loss_of(forward(model, micro_batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = rows_of(found)
    assert [site.layer for site in found.record.sites] == ["0", "1", "2"]
    assert [rows["0", t, "activation"].value for t in range(3)] == pytest.approx(expected[:3], rel=1e-6)
    assert rows["0", 2, "change"].status is Status.OK
    assert rows["0", 3, "change"].status is Status.MOVED_INPUT
    assert found.record.finished
    assert hook_count(model, optimizer) == 0


def test_calls_in_evaluation_mode_before_the_training_are_no_step():
    model = net().eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=8, steps=1) as found:
        model(OTHER[:2])
        model.train()
        for _ in range(2):
            descend(optimizer, loss_of(model(X)))
    rows = rows_of(found)
    assert rows["0", 1, "change"].status is Status.OK
    assert found.record.sites[0].shape == (6, 8)


@pytest.mark.parametrize(("gradients", "extra"), [(True, ["1#2"]), (False, [])])
def test_calls_of_layers_before_the_model_belong_to_the_step_where_they_have_gradients(gradients, extra):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=8, steps=1) as found:
        for _ in range(2):
            descend(optimizer, loss_of(model(X)))
            with torch.set_grad_enabled(gradients):
                model[1](OTHER)
    calls = [site.layer for site in found.record.sites if site.kind in (Kind.MODULE, Kind.PASSTHROUGH)]
    assert calls == ["0", "1", "2", "(model)", *extra]


def test_two_recorders_do_not_see_each_other():
    models = net(), net(nn.ReLU())
    optimizers = [SGD(model.parameters(), lr=0.1) for model in models]
    with (
        Recorder(models[0], optimizers[0], width=8, steps=1) as first,
        Recorder(models[1], optimizers[1], width=8, steps=2) as second,
        Recorder(models[1], optimizers[1], width=8, steps=2) as again,
    ):
        for _ in range(4):
            for model, optimizer in zip(models, optimizers, strict=True):
                descend(optimizer, loss_of(model(X)))
    assert {t for _, t, _ in rows_of(first)} == {0, 1}
    assert {t for _, t, _ in rows_of(second)} == {0, 1, 2}
    assert second.record.rows == again.record.rows != first.record.rows
    assert hook_count(*models, *optimizers) == 0


def test_a_recorder_records_one_run():
    model, optimizer = trained()
    found = Recorder(model, optimizer, width=16, steps=1)
    with found:
        with pytest.raises(coordcheck.CoordCheckError, match="one run"), found:
            pytest.fail("the inner block must not start")
        train(model, optimizer, updates=2)
    with pytest.raises(coordcheck.CoordCheckError, match="Make one per run"):
        found.__enter__()
    assert found.record.finished
    assert hook_count(model, optimizer) == 0


def test_the_file_is_there_and_the_model_free_as_soon_as_everything_is_recorded(tmp_path):
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=2, save_to=tmp_path) as found:
        train(model, optimizer, updates=2)
        assert not found.done
        assert not list(tmp_path.glob("runs/*/*.json"))
        assert hook_count(model) > 0
        train(model, optimizer, updates=1)
        assert found.done
        assert hook_count(model) == 0
        assert coordcheck.load(tmp_path).records[0].rows == found.record.rows


@pytest.mark.parametrize(
    ("updates", "note"),
    [(0, "recorded nothing of t=0..4: no training call of the model was seen"), (2, "recorded t=0..1 of t=0..4")],
)
def test_a_loop_that_ends_early_is_told(updates, note):
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16) as found:
        train(model, optimizer, updates)
    assert found.record.finished
    assert len(found.record.notes) == 1
    assert note in found.record.notes[0]
    assert hook_count(model, optimizer) == 0


def test_a_model_that_is_compiled_inside_the_block_trains_as_without():
    def trained_weights(recording: Recording) -> list[Tensor]:
        torch.compiler.reset()
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with recording(model, optimizer):
            quick = torch.compile(model, backend="eager", fullgraph=True)
            for _ in range(3):
                descend(optimizer, loss_of(quick(X)))
        return states(model)

    opened: list[Recorder] = []

    def recording(model: nn.Module, optimizer: Any) -> Recorder:
        opened.append(Recorder(model, optimizer, width=8, steps=1))
        return opened[0]

    assert all(map(torch.equal, trained_weights(recording), trained_weights(lambda *made: nullcontext())))
    assert (
        opened[0].done == hooks_module.Eager.possible
    )  # else nothing was seen, and the training is the same all the more


def test_a_saved_model_does_not_need_this_package():
    model = net()
    with Recorder(model, SGD(model.parameters(), lr=0.1), width=8):
        assert b"coordcheck" not in pickle.dumps(model)


class Wrapped(torch.optim.Optimizer):
    """As accelerate wraps an optimizer: an Optimizer without what torch's own `__init__` makes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_what_frameworks_wrap_around_is_taken_off():
    model, optimizer = trained()
    wrapped = Wrapped(optimizer)
    with Recorder(nn.DataParallel(model, device_ids=[]), wrapped, width=16, steps=1) as found:
        train(model, wrapped, updates=2)
    assert found.record.sites[0].layer == "input"
    assert found.record.settings["optimizer"] == "Adam"
    assert {t for _, t, _ in rows_of(found)} == {0, 1}


def test_a_model_on_several_devices_is_refused():
    model, optimizer = trained()
    parallel = nn.DataParallel(model, device_ids=[])
    parallel.device_ids = [0, 1]
    with pytest.raises(coordcheck.CoordCheckError, match="DistributedDataParallel"):
        Recorder(parallel, optimizer, width=16)


def test_a_distributed_model_is_recorded_under_the_names_of_its_layers(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model, optimizer = trained()
        parallel = nn.parallel.DistributedDataParallel(model)
        with Recorder(parallel, optimizer, width=16, steps=2) as found:
            train(parallel, optimizer, updates=3)
    finally:
        torch.distributed.destroy_process_group()
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=2) as alone:
        train(model, optimizer, updates=3)
    assert found.record.rows == alone.record.rows
    assert found.record.sites == alone.record.sites


PARTS = [
    Recorder,
    ActivationRecorder,
    Sites,
    SpreadOutputs,
    Window,
    InitialInputs,
    Reference,
    calls_module.Call,
    RunFolder,
    RunRecord,
    Row,
]
PARTS += [
    RecordedRun,
    StepCounter,
    TrainingCalls,
    OwnUpdatesInLoop,
    OwnUpdates,
    ScaleTable,
    Scratch,
    Tracer,
    Watch,
    Reading,
    FunctionReplay,
]
MODULES = [
    *(recorder_module, sites_module, calls_module, windows_module, hooks_module, parameters_module),
    *(wrappers_module, runfiles_module, scales, live_module, own_updates_module, degrees_module),
    *(uses_module, copies_module, norms_module, values_module, forward_functions_module, rows_module),
    gradients_module,
]
# of the block and of a trace, what a traced function goes through, and what every hook does
ENDS = {"__exit__", "end", "called", "_run", "watched", "unseen"}
INTERNALS = [
    *((part, name) for part in PARTS for name, f in vars(part).items() if inspect.isfunction(f) and name not in ENDS),
    *((m, name) for m in MODULES for name, f in vars(m).items() if inspect.isfunction(f) and name not in ENDS),
]


@pytest.mark.parametrize(
    ("part", "name"), INTERNALS, ids=[f"{part.__name__.removeprefix('coordcheck.')}.{name}" for part, name in INTERNALS]
)
def test_whatever_breaks_inside_never_reaches_the_loop(monkeypatch, tmp_path, part, name):
    losses = train(*trained(), updates=4)
    model, optimizer = trained()
    monkeypatch.setattr(part, name, raising(RuntimeError("broken inside")))
    began = False
    try:
        with Recorder(model, optimizer, width=16, steps=2, save_to=tmp_path):
            began = True
            assert train(model, optimizer, updates=4) == losses
    except RuntimeError as error:  # before the loop, where a folder that cannot be written is told, too
        assert str(error) == "broken inside"  # noqa: PT017  # most parts raise nothing at all
        assert not began
    assert hook_count(model, optimizer) == 0


def test_a_log_that_raises_and_an_error_without_a_text_stay_inside(monkeypatch, tmp_path):
    class Textless(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    model, optimizer = trained()
    monkeypatch.setattr(logging.getLogger("coordcheck"), "warning", raising(RuntimeError("no log")))
    monkeypatch.setattr(scales, "rms_and_mean_abs", raising(RuntimeError("broken")))
    found = Recorder(model, optimizer, width=16, save_to=tmp_path)
    with pytest.raises(Textless), found:
        raising(Textless())(train(model, optimizer, updates=2))
    assert found.record.outcome is Outcome.FAILED
    assert found.record.reason == "Textless"
    assert coordcheck.load(tmp_path).missing[0].reason == "Textless"


def test_evaluation_in_inference_mode_does_not_end_the_training():
    model, optimizer = trained()
    with Recorder(model, optimizer, width=16, steps=3) as found:
        for _ in range(4):
            train(model, optimizer, updates=1)
            with torch.inference_mode():
                model(pair_batch(seed=1)[0])
    assert rows_of(found)["input", 0, "activation"].status is Status.OK


def train_and_fail(found: Recorder, model: nn.Module, optimizer: Any, updates: int) -> None:
    with found:
        train(model, optimizer, updates)
        raise ZeroDivisionError("in the loop")


def test_an_exception_in_the_loop_propagates_and_the_hooks_are_gone(tmp_path):
    model, optimizer = trained()
    found = Recorder(model, optimizer, width=16, save_to=tmp_path)
    with pytest.raises(ZeroDivisionError, match="in the loop"):
        train_and_fail(found, model, optimizer, updates=2)
    assert hook_count(model, optimizer) == 0
    assert found.record.outcome is Outcome.FAILED
    assert found.record.reason == "ZeroDivisionError: in the loop"
    assert coordcheck.load(tmp_path).missing[0].reason == found.record.reason


def test_an_exception_after_the_last_recorded_step_leaves_a_finished_run():
    model, optimizer = trained()
    found = Recorder(model, optimizer, width=16, steps=1)
    with pytest.raises(ZeroDivisionError):
        train_and_fail(found, model, optimizer, updates=3)
    assert found.record.finished


@pytest.mark.fault(21)
def test_an_exception_in_forward_inside_the_loop_leaves_no_hooks():
    model = Lambda(raising(ZeroDivisionError("in forward")))
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), Recorder(model, optimizer, width=4):
        model(tensor(2, 4))
    assert hook_count(model, optimizer) == 0


@pytest.mark.parametrize("optimizer", [object(), []], ids=["no optimizer", "none"])
def test_an_optimizer_that_cannot_be_followed_is_refused_and_leaves_no_hooks(optimizer):
    model, _ = trained()
    with pytest.raises(coordcheck.CoordCheckError, match="optimizer"), Recorder(model, optimizer, width=16):
        pass
    assert hook_count(model) == 0


@pytest.mark.parametrize("width", [0, -3, 1.5, True, "64"])
def test_a_width_that_is_not_a_positive_integer_is_refused(width):
    model, optimizer = trained()
    with pytest.raises(coordcheck.CoordCheckError, match="width must be an integer of 1 or more"):
        Recorder(model, optimizer, width=width)


def test_a_folder_that_cannot_be_written_is_refused_before_the_loop(tmp_path):
    (tmp_path / "file").touch()
    model, optimizer = trained()
    with (
        pytest.raises(coordcheck.CoordCheckError, match="cannot write"),
        Recorder(model, optimizer, width=16, save_to=tmp_path / "file"),
    ):
        pytest.fail("the loop must not start")
    assert hook_count(model, optimizer) == 0
