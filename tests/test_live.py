"""Own updates of a training loop of the user's own, and the degree of its optimizer."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

import coordcheck
from coordcheck.degrees import degrees
from coordcheck.effects import initial_values
from coordcheck.models import mlp, transformer
from coordcheck.recorder import Recorder
from coordcheck.records import Quantity, Status
from coordcheck.scales import FEWEST_EXAMPLES, FEWEST_ROWS
from coordcheck.tracing import Tracer
from coordcheck.trials import seed_everything

WIDTHS = (32, 64, 128)
Build = Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(0))


PAIRS = numbers(128, 16), torch.arange(128) % 10
TEXT = tokens(8, 33)


def classify(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(PAIRS[0]), PAIRS[1])


def predict(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(TEXT[:, :-1]).flatten(0, 1), TEXT[:, 1:].flatten())


def recorded(build: Build, loss: Callable[[nn.Module], Tensor], folder: Path, **options: Any) -> coordcheck.Report:
    """One loop per width and seed, as on a cluster."""
    for seed in range(2):
        for width in WIDTHS:
            seed_everything(seed)
            model, optimizer = build(width)
            with Recorder(model, optimizer, width=width, seed=seed, save_to=folder, **options):
                for _ in range(5):
                    optimizer.zero_grad()
                    loss(model).backward()
                    optimizer.step()
    return coordcheck.load(folder)


def blamed(report: coordcheck.Report) -> dict[str, tuple[str, float]]:
    rows = report.verdicts[report.verdicts["culprit"]]
    return {row.layer: (row.cause, row.exponent) for row in rows.itertuples()}


def trained(model: nn.Module, optimizer: Any, loss: Callable[[nn.Module], Tensor], updates: int) -> None:
    for _ in range(updates):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


# Both controls: what a diagnosis says, the loop of a large batch says too


@pytest.mark.parametrize(
    ("build", "loss", "batch"),
    [
        (lambda name: mlp(name, "adam", inputs=16), classify, PAIRS),
        (lambda name: mlp(name, "sgd", inputs=16, lr=0.1), classify, PAIRS),
        (lambda name: transformer(name, "adam", vocabulary=64, context=32), predict, None),
        (lambda name: transformer(name, "sgd", vocabulary=64, context=32, lr=0.1), predict, None),
    ],
    ids=["MLP, Adam", "MLP, SGD", "Transformer, Adam", "Transformer, SGD"],
)
def test_own_loops_blame_what_a_diagnosis_blames(build, loss, batch, tmp_path):
    found = blamed(recorded(build("SP"), loss, tmp_path / "sp"))
    assert found
    if batch is None:
        expected = coordcheck.diagnose(
            build("SP"), TEXT, loss=lambda model, text: predict_on(model, text), widths=WIDTHS
        )
    else:
        expected = coordcheck.diagnose(build("SP"), batch, loss=F.cross_entropy, widths=WIDTHS)
    assert found == blamed(expected)
    healthy = recorded(build("µP"), loss, tmp_path / "mup")
    assert blamed(healthy) == {}
    parameters = healthy.verdicts[healthy.verdicts["parameter"].notna()]
    assert set(parameters["verdict"]) == {"ok"}
    assert healthy.parametrizations == {"model": "µP"}


def predict_on(model: nn.Module, text: Tensor) -> Tensor:
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def test_one_matrix_at_the_wrong_rate_is_named(tmp_path):
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, optimizer = mlp("µP", "adam", inputs=16)(width)
        wrong = model.hidden[1].weight
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not wrong]
        optimizer.add_param_group({"params": [wrong], "lr": 1e-3})
        return model, optimizer

    assert blamed(recorded(build, classify, tmp_path)) == {"hidden.1.weight": ("lr", -1.0)}


def test_without_own_updates_nothing_is_blamed(tmp_path):
    report = recorded(mlp("SP", "adam", inputs=16), classify, tmp_path, own_updates=False)
    assert blamed(report) == {}
    assert not report.verdicts["parameter"].notna().any()


# What is held, and for how long


def test_own_update_and_inherited_are_the_closed_forms():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer, x = SGD(model.parameters(), lr=0.1), numbers(6, 4)
    before = initial_values(model)
    with Recorder(model, optimizer, width=8, steps=1) as found:
        trained(model, optimizer, lambda model: model(x).square().mean(), 1)
        after, h0 = initial_values(model), torch.tanh(F.linear(x, before["0.weight"], before["0.bias"]))
        model(x)
    layers = {site.order: site.layer for site in found.record.sites}
    rows = {(layers[r.site], r.step, r.quantity): r.value for r in found.record.rows}

    def rms(values: Tensor) -> Any:
        return pytest.approx(values.square().mean().sqrt().item(), rel=1e-4)

    change = {name: after[name] - before[name] for name in before}
    ht = torch.tanh(F.linear(x, after["0.weight"], after["0.bias"]))
    assert rows["0.weight", 1, Quantity.OWN_UPDATE] == rms(x @ change["0.weight"].T)
    assert rows["2.weight", 1, Quantity.OWN_UPDATE] == rms(h0 @ change["2.weight"].T)
    assert rows["2.bias", 1, Quantity.OWN_UPDATE] == rms(change["2.bias"])
    assert rows["2.weight", 1, Quantity.INHERITED] == rms((ht - h0) @ before["2.weight"].T)
    assert rows["2.bias", 1, Quantity.INHERITED] == rms((ht - h0) @ before["2.weight"].T)
    assert rows["2.weight", 0, Quantity.INPUT] == rms(h0)
    assert rows["2.weight", 1, Quantity.WEIGHT_UPDATE] == rms(change["2.weight"])


def test_nothing_is_inherited_from_another_batch():
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=4, steps=2) as found:
        for seed in range(3):
            trained(model, optimizer, lambda model, seed=seed: model(numbers(6, 4, seed=seed)).square().mean(), 1)
    quantities = {row.quantity for row in found.record.rows}
    assert Quantity.OWN_UPDATE in quantities
    assert Quantity.INHERITED not in quantities


def test_the_copy_of_the_parameters_is_gone_when_everything_has_moved():
    model, optimizer = mlp("SP", "adam", inputs=16)(32)
    with Recorder(model, optimizer, width=32, steps=4) as found:
        trained(model, optimizer, classify, 1)
        held = [weakref.ref(value) for value in found._live._initial.values()]
        assert all(ref() is not None for ref in held)
        trained(model, optimizer, classify, 4)
    assert found.done
    assert all(ref() is None for ref in held)


def test_a_parameter_behind_a_zero_is_followed_until_it_moves():
    model, optimizer = mlp("µP", "adam", inputs=16, zero_init=("readout",))(32)
    with Recorder(model, optimizer, width=32, steps=4) as found:
        trained(model, optimizer, classify, 5)
    layers = {site.order: site.layer for site in found.record.sites}
    steps = {
        name: {r.step for r in found.record.rows if layers[r.site] == name and r.quantity is Quantity.OWN_UPDATE}
        for name in ("hidden.0.weight", "readout.weight")
    }
    assert steps == {"hidden.0.weight": {1, 2}, "readout.weight": {1, 2}}
    first = [r for r in found.record.rows if layers[r.site] == "hidden.0.weight" and r.quantity is Quantity.OWN_UPDATE]
    assert [row.status for row in first] == [Status.ZERO, Status.OK]


def test_no_mode_and_no_hook_is_left_by_a_call_that_raises():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 4))  # the second one cannot take what the first one gives
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=4):
        with pytest.raises(RuntimeError, match="shapes"):
            model(numbers(2, 4))
        assert torch._C._len_torch_function_stack() == 0
        assert sum(len(module._forward_hooks_always_called) for module in model.modules()) == 0


def sampled(model: nn.Module, x: Tensor) -> Tracer:
    with Tracer(model, keep_calls=True, sampled=True) as tracer:
        model(x)
    return tracer


@pytest.mark.parametrize(
    ("model", "x", "kept"),
    [
        (nn.Linear(256, 8), numbers(8, 64, 256), (FEWEST_ROWS, 256)),
        (nn.LayerNorm(256), numbers(8, 64, 256), (FEWEST_ROWS, 256)),
        (nn.Conv2d(3, 8, 3), numbers(64, 3, 32, 32), (FEWEST_EXAMPLES, 3, 32, 32)),
        (nn.BatchNorm2d(8), numbers(64, 8, 16, 16), (FEWEST_EXAMPLES, 8, 16, 16)),
        (nn.Linear(8, 4), numbers(6, 8), (6, 8)),
        (nn.LSTM(8, 4), numbers(64, 512, 8), (64, 512, 8)),
    ],
    ids=["rows", "rows of a norm", "examples", "examples of a norm", "all of a small one", "all of what mixes rows"],
)
def test_a_sampled_trace_keeps_a_few_rows_or_examples(model, x, kept):
    uses = sampled(model, x).uses.values()
    assert {tuple(use.leaves[use.input_position].shape) for use in uses if use.input_position is not None} == {kept}


def test_the_scales_of_a_sampled_trace_are_near_those_of_the_whole(monkeypatch, tmp_path):
    def table(folder: Path) -> Any:
        rows = recorded(transformer("SP", "adam", vocabulary=64, context=32), predict, folder).measurements
        return rows.set_index(["width", "seed", "layer", "step", "quantity"])["value"]

    few = table(tmp_path / "few")
    whole = Tracer.__init__
    monkeypatch.setattr(Tracer, "__init__", lambda *args, **options: whole(*args, **{**options, "sampled": False}))
    every = table(tmp_path / "every")
    assert few.index.equals(every.index)
    ratio = (few / every).dropna()
    assert (ratio != 1).any(), "nothing was sampled"
    assert ratio.between(0.85, 1.15).all()
    assert ratio.sub(1).abs().median() < 0.05


# The degree of the optimizer


class Signs(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()


class Cubes(Signs):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad**3


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: SGD(p, lr=0.1), 1),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), 1),
        (lambda p: Adam(p, lr=0.0), 0),
        (lambda p: Adam(p, lr=0.1, eps=1e3), 0),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1.0), 0),
        (lambda p: torch.optim.RMSprop(p, lr=0.1), 0),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), 0),
        (lambda p: torch.optim.Muon(p, lr=0.1), 0),
        (lambda p: Signs(p, lr=0.1), 0),
        (lambda p: Cubes(p, lr=0.1), 3),
        (lambda p: torch.optim.LBFGS(p, lr=0.1), None),
    ],
    ids=["SGD", "momentum", "warm-up", "large eps", "AdamW", "RMSprop", "Adagrad", "Muon", "signs", "cubes", "LBFGS"],
)
def test_the_degree_is_measured_on_a_copy(make, expected):
    model = nn.Linear(40, 30, bias=False)
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t + 1)
    seen: list[Any] = []
    optimizer.register_step_post_hook(lambda *call: seen.append(call))
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    found = degrees(model, [optimizer])
    assert found == ({} if expected is None else {"weight": pytest.approx(expected, abs=0.01)})
    assert torch.equal(model.weight, before["weight"])
    assert model.weight.grad is None
    assert str(optimizer.state_dict()) == str(state)
    assert seen == []
    assert schedule.last_epoch == 0


def test_each_group_has_its_own_degree():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    both = [SGD(model[0].parameters(), lr=0.1), Adam(model[1].parameters())]
    assert {name: round(degree) for name, degree in degrees(model, both).items()} == {
        **{"0.weight": 1, "0.bias": 1},
        **{"1.weight": 0, "1.bias": 0},
    }
