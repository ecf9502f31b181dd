"""Own updates of a training loop of the user's own, and the degree of its optimizer."""

from __future__ import annotations

import copy
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import muon
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import coordcheck
from coordcheck.models import mlp, transformer
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.recorder import Recorder
from coordcheck.recording.scales import FEWEST_EXAMPLES, FEWEST_ROWS
from coordcheck.recording.updates.degrees import degrees
from coordcheck.recording.updates.replays import FunctionReplay
from coordcheck.recording.updates.values import initial_values
from coordcheck.runs.words import Quantity, Status
from coordcheck.training.trials import seed_everything

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
    before = initial_values(dict(model.named_parameters()))
    with Recorder(model, optimizer, width=8, steps=1) as found:
        trained(model, optimizer, lambda model: model(x).square().mean(), 1)
        after, h0 = (
            initial_values(dict(model.named_parameters())),
            torch.tanh(F.linear(x, before["0.weight"], before["0.bias"])),
        )
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
        trained(model, optimizer, classify, 1)
        assert all(ref() is None for ref in held)
        assert not found.done


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


# Training is the same to the bit, whatever the model and the loop do


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(numbers(1, 8, 256))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bti,io->bto", x, self.weight)


class Attending(nn.Module):
    """Dropout, both kinds of attention; `within` is entered around a part of it."""

    def __init__(self, within: Callable[[], Any] = nullcontext) -> None:
        super().__init__()
        self.attention, self.out, self.within = nn.MultiheadAttention(8, 2, dropout=0.2), nn.Linear(8, 8), within

    def forward(self, x: Tensor) -> Tensor:
        with self.within():
            h = self.out(self.attention(x, x, x)[0])
            return F.dropout(F.scaled_dot_product_attention(h, h, h), 0.5) + torch.rand(8)


class Drawing(TorchFunctionMode):
    """Draws a number at whatever it sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        torch.rand(1)
        return function(*args, **(kwargs or {}))


class DrawingBelow(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        torch.rand(1)
        return function(*args, **(kwargs or {}))


class Doubling(Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(function, types, args, kwargs or {})
        return output * 2 if function is F.linear else output


class Saving(nn.Module):
    """A checkpoint that keeps what products gave, by their number."""

    def __init__(self) -> None:
        super().__init__()
        if not hasattr(torch.utils.checkpoint, "create_selective_checkpoint_contexts"):
            pytest.skip(f"such checkpoints came with torch 2.5, and this is {torch.__version__}")
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        kept = [torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default]
        contexts = partial(torch.utils.checkpoint.create_selective_checkpoint_contexts, kept)

        def inside(x: Tensor) -> Tensor:
            h = F.scaled_dot_product_attention(self.one(x), self.two(x), x)
            return torch.softmax(h @ h.mT, -1) @ self.two(h)

        return checkpoint(inside, x, use_reentrant=False, context_fn=contexts)


class Again(nn.Module):
    """Calls itself, inside a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        if not depth:
            return self.layer(x)
        with Drawing():
            return self(x, depth - 1) + F.dropout(x, 0.5) + self.layer(x)


class Vmapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.out = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.vmap(lambda v: self.drop(self.layer(v)), randomness="different")(x))


class Noisy(torch.optim.Optimizer):
    """Draws from every source, and counts in places of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "seen": []})
        self.total = torch.zeros(1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.total += 1
        for group in self.param_groups:
            group["seen"].append(len(group["seen"]))
            for p in group["params"]:
                p -= group["lr"] * p.grad + 1e-3 * self.total * (torch.rand(1) + random.random() + np.random.rand())
                p += 1e-3 * len(group["seen"])


class Listing(torch.optim.Optimizer):
    """Keeps its own list of the parameters."""

    def __init__(self, params: Any) -> None:
        self.all = list(params)
        super().__init__(self.all, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.all:
            p -= 0.1 * p.grad


class Around(torch.optim.Optimizer):
    """Holds the optimizer that steps."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure: Any = None) -> None:
        self.base.step()


SEQUENCE = numbers(5, 3, 8)
LOOPS: dict[str, Callable[[], tuple[nn.Module, Any, Any, Any]]] = {
    "dropout of an LSTM": lambda: (nn.LSTM(8, 8, num_layers=2, dropout=0.5), SEQUENCE, SGD, nullcontext),
    "dropout of a GRU": lambda: (nn.GRU(8, 8, num_layers=2, dropout=0.5), SEQUENCE, SGD, nullcontext),
    "a mode inside": lambda: (Attending(Drawing), SEQUENCE, SGD, nullcontext),
    "a mode around": lambda: (Attending(), SEQUENCE, SGD, Drawing),
    "a mode below, inside": lambda: (Attending(DrawingBelow), SEQUENCE, SGD, nullcontext),
    "a mode below, around": lambda: (Attending(), SEQUENCE, SGD, DrawingBelow),
    "a subclass": lambda: (Attending(), SEQUENCE.as_subclass(Doubling), SGD, nullcontext),
    "a checkpoint that saves": lambda: (Saving(), SEQUENCE, SGD, nullcontext),
    "recursion": lambda: (Again(), SEQUENCE, SGD, nullcontext),
    "vmap": lambda: (Vmapped(), numbers(6, 8), SGD, nullcontext),
    "noise": lambda: (nn.Linear(8, 8), SEQUENCE, Noisy, nullcontext),
    "its own list": lambda: (nn.Linear(8, 8), SEQUENCE, Listing, nullcontext),
    "one inside another": lambda: (nn.Linear(8, 8), SEQUENCE, lambda p: Around(SGD(p, lr=0.1)), nullcontext),
}


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_training_is_the_same_to_the_bit(make):
    def run(*, recorded: bool) -> Any:
        seed_everything(0)
        model, x, optimizer, around = make()
        optimizer = optimizer(model.parameters())
        recorder = Recorder(model, optimizer, width=8) if recorded else nullcontext()
        with recorder:
            for _ in range(6):
                with around():
                    optimizer.zero_grad()
                    output = model(x)
                    output = output if isinstance(output, Tensor) else output[0]
                    output.square().mean().backward()
                    optimizer.step()
        assert torch._C._len_torch_function_stack() == 0
        if recorded:
            assert any(row.quantity is Quantity.OWN_UPDATE for row in recorder.record.rows)
            assert not [note for note in recorder.record.notes if "failed" in note]
        drawn = torch.rand(1).item(), random.random(), np.random.rand()
        return [p.tolist() for p in model.state_dict().values()], drawn

    assert run(recorded=True) == run(recorded=False)


def test_hooks_on_every_optimizer_see_the_steps_of_the_loop_alone():
    seen: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *call: seen.append(optimizer))
    model, optimizer = mlp("SP", "adam", inputs=16)(32)
    with handle, Recorder(model, optimizer, width=32):
        trained(model, optimizer, classify, 3)
    assert seen == [optimizer] * 3


def test_of_two_calls_at_the_same_time_one_is_traced():
    both = threading.Barrier(2)

    class Waiting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            both.wait(10)
            output = super().forward(x)
            both.wait(10)
            return output

    model = nn.Sequential(nn.Linear(8, 8), Waiting(8, 8))
    optimizer = SGD(model.parameters(), lr=0.1)

    def called(seed: int) -> tuple[Tensor, int]:
        return model(numbers(6, 8, seed=seed)).square().mean(), torch._C._len_torch_function_stack()

    with ThreadPoolExecutor(2) as threads, Recorder(model, optimizer, width=8, steps=2) as found:
        for _ in range(4):
            losses, modes = zip(*threads.map(called, range(2)), strict=True)
            assert modes == (0, 0)
            sum(losses).backward()
            optimizer.step()
    assert {row.quantity for row in found.record.rows} >= {Quantity.OWN_UPDATE}
    assert not [note for note in found.record.notes if "failed" in note]


def test_a_call_that_is_interrupted_leaves_nothing_behind():
    class Interrupted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(4, 4), Interrupted(4, 4))
    with pytest.raises(KeyboardInterrupt), Recorder(model, SGD(model.parameters(), lr=0.1), width=4):
        model(numbers(2, 4))
    assert torch._C._len_torch_function_stack() == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("gap", [0, 3], ids=["transposed later", "with gaps from the start"])
def test_a_parameter_laid_out_otherwise_has_the_same_own_update(gap):
    model, x = nn.Linear(6, 6, bias=False), numbers(16, 6)
    if gap:
        model.weight.data = torch.cat([model.weight.data, torch.zeros(6, gap)], 1)[:, :6]
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=8, steps=1) as found:
        before = model.weight.detach().clone()
        trained(model, optimizer, lambda model: (model(x) * torch.arange(6)).square().mean(), 1)
        if not gap:
            model.weight.data = model.weight.data.T.contiguous().T
        model(x)
    (own,) = (row.value for row in found.record.rows if row.quantity is Quantity.OWN_UPDATE)
    assert own == pytest.approx((x @ (model.weight - before).T).square().mean().sqrt().item(), rel=1e-4)


def test_a_parameter_that_is_replaced_is_told_and_the_others_are_measured():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=4, steps=1) as found:
        trained(model, optimizer, lambda model: model(numbers(6, 4)).square().mean(), 1)
        model[1] = nn.Linear(4, 9)
        model(numbers(6, 4))
    layers = {site.order: site.layer for site in found.record.sites}
    own = {layers[row.site] for row in found.record.rows if row.quantity is Quantity.OWN_UPDATE}
    assert own == {"0.weight", "0.bias"}
    assert "own_update of 1.weight (it was replaced) was not measured" in found.record.notes


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
        (nn.LSTM(8, 4), numbers(64, 512, 8), (64, 8, 8)),
        (nn.GRU(8, 4, batch_first=True), numbers(512, 64, 8), (8, 64, 8)),
        (Positions(), numbers(64, 8, 256), (FEWEST_EXAMPLES, 8, 256)),
        (Mixing(), numbers(64, 32, 16), (64, 32, 16)),
    ],
    ids=[
        *("rows", "rows of a norm", "examples", "examples of a norm", "all of a small one"),
        *("sequences", "sequences, batch first", "examples of a table", "all of what mixes rows"),
    ],
)
def test_a_sampled_trace_keeps_a_few_rows_or_examples(model, x, kept):
    uses = sampled(model, x).uses.values()
    assert {tuple(use.leaves[use.input_position].shape) for use in uses if use.input_position is not None} == {kept}


def test_rows_of_the_output_are_those_of_the_input():
    model, x = nn.Linear(64, 256, bias=False), numbers(8, 64, 64)
    tracer = sampled(model, x)
    use = tracer.uses["weight", "linear"]
    torch.testing.assert_close(use.output, model(use.leaves[0]))
    replay = FunctionReplay(use, initial_values(dict(model.named_parameters())))
    torch.testing.assert_close(replay.output(), F.linear(use.leaves[0], model.weight))


def test_an_activation_in_the_place_of_the_weight_has_no_rows():
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(numbers(2000, 64))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.p, x)

    tracer = sampled(Swapped(), numbers(32, 64))
    assert tracer.uses["p", "linear"].output is None
    assert not tracer.skipped


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
        (lambda p: muon(p, lr=0.1), 0),
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


class MatricesAlone(SGD):
    def step(self, closure: Any = None) -> Any:
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"])
        return super().step()


def test_parameters_that_an_optimizer_refuses_do_not_hide_the_others():
    model = nn.Linear(40, 30)
    assert degrees(model, [MatricesAlone(model.parameters(), lr=0.1)]) == {"weight": pytest.approx(1)}


class MultipliedByNoise(SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad * (torch.rand(()) + 0.5)


def test_noise_is_the_same_under_both_gradients():
    model = nn.Linear(40, 30)
    assert degrees(model, [MultipliedByNoise(model.parameters(), lr=0.1)]) == {
        "weight": pytest.approx(1),
        "bias": pytest.approx(1),
    }


class Flagged(SGD):
    """Writes down when it is made which parameters it treats in another way."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for p in self.param_groups[0]["params"]:
            self.state[p]["signs"] = p.dim() > 1

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p -= self.param_groups[0]["lr"] * (p.grad.sign() if self.state[p]["signs"] else p.grad)


def test_flags_of_the_parameters_count_for_the_copy():
    model = nn.Linear(40, 30)
    optimizer = Flagged(model.parameters(), lr=0.1)
    assert degrees(model, [optimizer]) == {"weight": pytest.approx(0, abs=0.01), "bias": pytest.approx(1)}
    assert list(optimizer.state.values()) == [{"signs": True}, {"signs": False}]


class Late(SGD):
    """Does nothing in its first step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            if self.state[p].setdefault("late", False):
                p -= self.param_groups[0]["lr"] * p.grad
            self.state[p]["late"] = True


def test_the_degree_is_that_of_the_first_step_that_moves():
    model = nn.Linear(40, 30)
    assert degrees(model, [Late(model.parameters(), lr=0.1)]) == {"weight": pytest.approx(1), "bias": pytest.approx(1)}


def test_zero_weights_have_no_output_under_autocast():
    model = nn.Linear(64, 64)
    nn.init.zeros_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, width=64, steps=1) as found, torch.autocast("cpu", torch.bfloat16):
        trained(model, optimizer, lambda model: model(numbers(8, 64)).float().square().mean(), 2)
    layers = {site.order: site.layer for site in found.record.sites}
    (output,) = (r for r in found.record.rows if (layers[r.site], r.step, r.quantity) == ("weight", 0, Quantity.OUTPUT))
    assert output.status is Status.ZERO


def test_a_degree_that_is_known_is_that_of_the_same_options():
    model = nn.Linear(4, 4, bias=False)
    for make, expected in (
        (lambda: torch.optim.Rprop(model.parameters()), 0),
        (lambda: SGD(model.parameters(), lr=0.1), 1),
        (lambda: SGD(model.parameters(), lr=0.2, momentum=0.9), 1),
        (lambda: Adam(model.parameters()), 0),
    ):
        for _ in range(2):
            assert degrees(model, [make()]) == {"weight": pytest.approx(expected, abs=0.01)}


def test_a_step_that_is_replaced_in_the_class_is_measured(monkeypatch):
    model = nn.Linear(4, 4, bias=False)
    assert degrees(model, [Adam(model.parameters())]) == {"weight": pytest.approx(0, abs=0.01)}

    def step(self: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])

    monkeypatch.setattr(Adam, "step", step)
    assert degrees(model, [Adam(model.parameters())]) == {"weight": pytest.approx(1)}


def test_each_group_has_its_own_degree():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    both = [SGD(model[0].parameters(), lr=0.1), Adam(model[1].parameters())]
    assert {name: round(degree) for name, degree in degrees(model, both).items()} == {
        **{"0.weight": 1, "0.bias": 1},
        **{"1.weight": 0, "1.bias": 0},
    }
