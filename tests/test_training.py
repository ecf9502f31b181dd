"""One run: what it does to the model, what it is told, and that it leaves everything else as it was."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import WIDTHS, default_device, pair_batch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import coordcheck
from coordcheck import CoordCheckError, Trial, output_loss
from coordcheck.models import mlp
from coordcheck.recording.batches import cached_batches
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.words import Outcome, Status
from coordcheck.training.losses import as_loss, model_loss
from coordcheck.training.run import execute
from coordcheck.training.trials import Run

WIDTH = 16


def run(build: Any, batch: Any = None, *, loss: Any = F.cross_entropy, steps: int = 2, seed: int = 0, **options: Any):
    """The record of one run, prepared as `check` prepares it."""
    if batch is None:
        batch = pair_batch()
    device = options.pop("device", None)
    batches = cached_batches(batch, steps)
    return accepted(execute(Run(RunKey("model", WIDTH, seed), build, batches, as_loss(loss), steps, device, 1, {})))


def accepted(record: RunRecord) -> RunRecord:
    """The record, unless the run was refused: then its reason is raised, as `check` does."""
    if record.outcome is Outcome.REFUSED:
        raise CoordCheckError(record.reason)
    return record


def finished(record: RunRecord) -> RunRecord:
    assert record.finished, record.reason
    return record


def rows_of(record: RunRecord) -> dict[tuple[str, int, str], Any]:
    return {(record.sites[r.site].layer, r.step, r.quantity.value): r for r in record.rows}


class Net(nn.Module):
    """A two-layer classifier that keeps every input it saw; `before` is applied to the input."""

    def __init__(self, width: int = WIDTH, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(64, width), nn.Linear(width, 10)
        self.before = before
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.readout(torch.relu(self.first(self.before(x))))


class Built:
    """A factory that keeps the models it made."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.models: list[Net] = []

    def __call__(self, width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.models.append(Net(width, **self.options))
        return self.models[-1], SGD(self.models[-1].parameters(), lr=0.1)


# Global state


def global_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": default_device(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "rcParams": dict(mpl.rcParams),
    }


@pytest.fixture
def restored():
    """Whatever a test does to the global state ends with it."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)


def disturb() -> None:
    """Change every global that a factory might; after it, models still train."""
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)


def failing(*_: Any) -> Any:
    disturb()
    raise ZeroDivisionError("on purpose")


def disturbing(width: int) -> Any:
    made = Built()(width)
    disturb()
    return made


def failing_forward(width: int) -> Any:
    return Built(before=failing)(width)


def refused(width: int) -> Any:
    disturb()
    return "no model"


def test_the_state_used_here_sees_every_disturbance(restored):
    before, threads = global_state(), torch.get_num_threads()
    disturb()
    torch.set_num_threads(threads + 1)
    changed = {name for name, value in global_state().items() if value != before[name]}
    assert changed == {"torch", "numpy", "python", "dtype", "device", "threads", "deterministic"}


@pytest.mark.parametrize(
    ("build", "outcome"),
    [
        (disturbing, Outcome.FINISHED),
        (failing, Outcome.FAILED),
        (failing_forward, Outcome.FAILED),
    ],
)
def test_execute_leaves_the_global_state_as_found(restored, build, outcome):
    before = global_state()
    record = run(build)
    assert record.outcome is outcome, record.reason
    assert global_state() == before


def test_execute_leaves_the_global_state_as_found_after_refusing_its_input(restored):
    before = global_state()
    with pytest.raises(CoordCheckError, match="returned str"):
        run(refused)
    assert global_state() == before


@pytest.mark.parametrize("found", ["grad off", "deterministic, warn only", "float64", "meta"])
def test_an_unusual_state_is_found_again(restored, found):
    match found:
        case "grad off":
            torch.set_grad_enabled(False)
        case "deterministic, warn only":
            torch.use_deterministic_algorithms(True, warn_only=True)
        case "float64":
            torch.set_default_dtype(torch.float64)
        case "meta":
            torch.set_default_device("meta")
    before = global_state()

    def build(width: int) -> Any:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        return Built()(width)

    run(build, (torch.zeros(4, 64, device="cpu", dtype=torch.float32), torch.zeros(4, device="cpu", dtype=torch.long)))
    assert global_state() == before


def small_check(build: Any, batch: Any = None) -> coordcheck.Report:
    return coordcheck.check(
        build, pair_batch() if batch is None else batch, loss=F.cross_entropy, widths=(8, 16, 32), seeds=1, steps=1
    )


def test_check_and_its_figure_leave_the_global_state_as_found(restored):
    small_check(mlp("µP"))  # the imports of the first one are tested below
    before = global_state()
    small_check(mlp("µP")).figure()
    assert global_state() == before


def test_a_check_whose_runs_all_fail_leaves_the_global_state_as_found(restored):
    before = global_state()
    with pytest.raises(CoordCheckError, match="every run failed"):
        small_check(failing)
    assert global_state() == before


FIRST_CHECK = """
import random, torch, numpy
import torch.nn.functional as F
import coordcheck
from coordcheck.models import mlp
batch = torch.randn(4, 64), torch.randint(10, (4,))
before = random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()
print(coordcheck.check(mlp("SP"), batch, loss=F.cross_entropy, widths=(8, 16, 32), seeds=1, steps=1).widths)
assert (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()) == before
"""


def test_what_the_first_check_imports_leaves_the_random_state_as_found():
    done = subprocess.run([sys.executable, "-c", FIRST_CHECK], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[8, 16, 32]\n"
    assert done.returncode == 0, done.stderr


def test_check_leaves_the_random_state_as_found_when_it_reads_a_shuffling_loader():
    loader = DataLoader(TensorDataset(*pair_batch(examples=32)), batch_size=8, shuffle=True)
    before = global_state()
    small_check(mlp("µP"), loader)
    assert global_state() == before


def test_a_run_works_where_gradients_are_off():
    with torch.no_grad():
        record = finished(run(Built()))
    assert rows_of(record)["first", 1, "change"].status is Status.OK


def test_a_run_depends_on_its_seed_alone():
    first = run(Built(), seed=3)
    torch.rand(7), np.random.rand(7), random.random()
    again, other = run(Built(), seed=3), run(Built(), seed=4)
    assert again.rows == first.rows
    assert other.rows != first.rows


# The model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.fault(25)
def test_the_model_stays_in_the_mode_it_was_built_in(training):
    modes = []

    def build(width: int) -> Any:
        model, optimizer = Built()(width)
        model.train(training)
        model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
        return model, optimizer

    finished(run(build))
    assert modes == [training] * 3


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_steps_are_backward_passes_and_one_more_forward(monkeypatch, steps):
    build, backwards, backward = Built(), [], Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda *args: (backwards.append(1), backward(*args)))
    record = finished(run(build, steps=steps))
    assert len(build.models[0].seen) == steps + 1
    assert len(backwards) == steps
    assert len(record.losses) == steps + 1
    assert {row.step for row in record.rows} == set(range(steps + 1))


def test_the_model_is_left_without_hooks():
    build = Built()
    finished(run(build))
    hooks = [value for m in build.models[0].modules() for name, value in vars(m).items() if "hooks" in name and value]
    assert hooks == []


def test_losses_are_those_of_a_plain_loop():
    build = Built()
    record = finished(run(build, steps=3))
    torch.manual_seed(0)
    model, optimizer = build(WIDTH)
    (x, y), expected = pair_batch(), []
    for _ in range(4):
        loss = F.cross_entropy(model(x), y)
        expected.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert record.losses == expected


def test_a_loss_that_is_not_finite_is_none():
    record = finished(run(Built(before=lambda x: x * float("nan"))))
    assert record.losses == [None, None, None]


def test_two_optimizers_train_together():
    def build(width: int) -> Any:
        model = Net(width)
        return model, (SGD(model.first.parameters(), lr=0.1), SGD(model.readout.parameters(), lr=0.1))

    assert finished(run(build)).rows == run(Built()).rows


def test_device_moves_the_model():
    record = finished(run(Built(), device="cpu"))
    assert record.rows == run(Built()).rows


# The batch


@pytest.mark.parametrize("kind", ["pair", "list of pairs", "mapping"])
def test_batches_are_not_modified_by_a_model_that_works_in_place(kind):
    x, y = pair_batch()
    before = x.clone()
    if kind == "mapping":
        batch, loss = {"x": x, "y": y}, lambda model, b: F.cross_entropy(model(b["x"]), b["y"])
    else:
        batch, loss = ((x, y) if kind == "pair" else [(x, y)] * 3), F.cross_entropy
    build = Built(before=lambda x: x.mul_(3))
    finished(run(build, batch, loss=loss))
    assert torch.equal(x, before)
    assert torch.equal(build.models[0].seen[0], before)


def test_every_step_sees_the_fixed_batch_even_when_the_model_works_in_place():
    build = Built(before=lambda x: x.mul_(3))
    finished(run(build))
    assert all(torch.equal(x, pair_batch()[0]) for x in build.models[0].seen)


def test_the_change_of_a_model_that_works_in_place_is_measured():
    in_place = finished(run(Built(before=lambda x: x.relu_())))
    out_of_place = finished(run(Built(before=lambda x: x.relu())))
    assert in_place.losses == out_of_place.losses
    assert in_place.rows == out_of_place.rows


@pytest.mark.parametrize("kind", ["list", "generator", "loader"])
def test_step_t_uses_batch_t(kind):
    pairs = [pair_batch(seed) for seed in range(3)]
    batch = {
        "list": pairs,
        "generator": (pair_batch(seed) for seed in count()),
        "loader": DataLoader(TensorDataset(*map(torch.cat, zip(*pairs, strict=True))), batch_size=16),
    }[kind]
    build = Built()
    record = finished(run(build, batch))
    assert all(torch.equal(x, pairs[t][0]) for t, x in enumerate(build.models[0].seen))
    changes = {row.status for (_, _, quantity), row in rows_of(record).items() if quantity == "change"}
    assert changes == {Status.OK}  # of the first batch, on which the model is looked at besides
    fixed = rows_of(finished(run(Built(), pairs[0])))  # trained on the same until t=1
    for (layer, step, quantity), row in rows_of(record).items():
        assert (row == fixed[layer, step, quantity]) is (step < 2)


def test_a_sequence_of_one_batch_is_a_fixed_batch():
    assert finished(run(Built(), [pair_batch()])).rows == run(Built()).rows


def test_no_more_batches_are_taken_than_there_are_steps():
    taken = []
    cached_batches((taken.append(t) or pair_batch(t) for t in count()), steps=2)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("batches", [[], (), iter(()), [pair_batch()] * 2], ids=["list", "tuple", "iterator", "two"])
def test_too_few_batches_are_refused(batches):
    with pytest.raises(CoordCheckError, match="too few for 2 steps: give 3"):
        cached_batches(batches, steps=2)


def test_a_batch_may_be_a_function_of_the_seed():
    seeds, build = [], Built()

    def batch(seed: int) -> Any:
        seeds.append(seed)
        return torch.randn(4, 64), torch.randint(10, (4,))

    runs = [finished(run(build, batch, seed=seed)) for seed in (5, 5, 6)]
    assert seeds == [5, 5, 6]
    first, again, other = (model.seen[0] for model in build.models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert runs[0].rows == runs[1].rows
    assert rows_of(runs[0])["first", 1, "change"].status is Status.OK


def test_a_function_of_the_seed_may_give_several_batches():
    build = Built()
    finished(run(build, lambda seed: [pair_batch(10 * seed + t) for t in range(3)], seed=2))
    assert all(torch.equal(x, pair_batch(20 + t)[0]) for t, x in enumerate(build.models[0].seen))


def test_a_trial_brings_its_own_batch_and_loss():
    batch, model = pair_batch(seed=9, examples=5), Net()
    trial = Trial(model, SGD(model.parameters(), lr=0.0), batch, lambda model, pair: model(pair[0]).square().mean())
    record = finished(run(lambda width: trial))
    assert all(torch.equal(x, batch[0]) for x in model.seen)
    assert record.losses == [pytest.approx(float(model(batch[0]).detach().square().mean()))] * 3


def test_a_trial_may_bring_the_only_batch():
    model = Net()
    trial = Trial(model, SGD(model.parameters(), lr=0.1), pair_batch())
    run_ = Run(RunKey("model", WIDTH, 0), lambda width: trial, None, as_loss(F.cross_entropy), 1, None, 1, {})
    assert len(finished(execute(run_)).losses) == 2


# The loss


class Labelled(nn.Module):
    """A model that returns its own loss, wrapped as `wrap(loss, logits)` says."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = Net(), wrap

    def forward(self, inputs: Tensor, labels: Tensor) -> Any:
        logits = self.net(inputs)
        return self.wrap(F.cross_entropy(logits, labels), logits)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
        lambda loss, logits: {"logits": logits, "loss": loss},
        lambda loss, logits: (loss, logits),
    ],
    ids=["attribute", "mapping", "first element"],
)
def test_a_model_that_returns_its_own_loss_needs_no_loss(wrap):
    def build(width: int) -> Any:
        model = Labelled(wrap)
        return model, SGD(model.parameters(), lr=0.1)

    x, y = pair_batch()
    record = finished(run(build, {"inputs": x, "labels": y}, loss=None))
    assert record.losses == run(Built()).losses


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        output_loss(F.cross_entropy),
        output_loss(lambda output, target: F.cross_entropy(output, target)),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    ],
    ids=["module", "output_loss of a function", "output_loss of a lambda", "of (model, batch)"],
)
def test_every_way_to_give_a_loss_is_the_same_loss(loss):
    assert finished(run(Built(), loss=loss)).losses == run(Built(), loss=F.cross_entropy).losses


def test_no_loss_for_a_pair_is_refused_with_what_to_pass():
    with pytest.raises(
        CoordCheckError, match=r"no loss= was given and the batch is \(Tensor\[16, 64\], Tensor\[16\]\)"
    ):
        run(Built(), loss=None)


def test_a_criterion_needs_a_pair():
    with pytest.raises(CoordCheckError, match=r"needs a batch \(x, y\), got \{'x': Tensor\[16, 64\]\}"):
        run(Built(), {"x": pair_batch()[0]})


def test_model_loss_passes_the_mapping_as_keywords():
    assert model_loss(lambda **batch: (batch, "rest"), {"a": 1, "b": 2}) == {"a": 1, "b": 2}


def foreign_optimizer(width: int) -> Any:
    return Net(width), SGD(Net(width).parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("build", "loss", "message"),
    [
        (lambda width: Net(), F.cross_entropy, r"build\(16\) of 'model' returned Net; it must return"),
        (lambda width: ("net", None), F.cross_entropy, "returned str as the model"),
        (lambda width: (Net(), "adam"), F.cross_entropy, "returned str as the optimizer"),
        (foreign_optimizer, F.cross_entropy, "holds none of the model's 4 trainable parameters"),
        (Built(), lambda model, batch: model(batch[0]), r"one element, got Tensor\[16, 10\]"),
        (Built(), lambda model, batch: 3.0, "one element, got float"),
        (Built(), lambda model, batch: model(batch[0]).detach().mean(), "it has no gradient"),
        (Built(), lambda model, batch: batch[0].clone().requires_grad_().sum(), "none received a gradient"),
    ],
)
@pytest.mark.fault(53)
@pytest.mark.fault(54)
def test_what_no_run_could_work_with_is_refused(build, loss, message):
    with pytest.raises(CoordCheckError, match=message):
        run(build, loss=loss)


def test_a_missing_batch_is_refused():
    run_ = Run(RunKey("model", WIDTH, 0), Built(), None, as_loss(F.cross_entropy), 1, None, 1, {})
    with pytest.raises(CoordCheckError, match="there is no batch: pass batch="):
        accepted(execute(run_))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ZeroDivisionError("on purpose"), Outcome.FAILED),
        (MemoryError("on purpose"), Outcome.OUT_OF_MEMORY),
        (torch.cuda.OutOfMemoryError("on purpose"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: on purpose"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("on purpose"), Outcome.FAILED),
    ],
)
def test_a_run_that_raises_is_told_in_its_record(error, outcome):
    def build(width: int) -> Any:
        raise error

    record = run(build)
    assert record.outcome is outcome
    assert record.reason.endswith("on purpose")


# What the reader is told


class Wrapped(nn.Module):
    """A hidden layer whose weight is used without calling it, and what `make` adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(64, width), nn.Linear(width, width, bias=False)
        self.readout = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.linear(self.first(x), self.inner.weight))


def notes_of(make: Callable[[int], Any], **options: Any) -> list[str]:
    options = {"loss": F.cross_entropy, "widths": WIDTHS, "seeds": 1, "steps": 1} | options
    return coordcheck.check(make, pair_batch(), **options).notes


def trained_by_sgd(make: Callable[[int], nn.Module]) -> Callable[[int], Any]:
    def model(width: int) -> Any:
        made = make(width)
        return made, SGD(made.parameters(), lr=0.1)

    return model


def test_parameters_that_reach_no_optimizer_are_told():
    def model(width: int) -> Any:
        net = Net(width)
        return net, SGD(net.readout.parameters(), lr=0.1)

    assert notes_of(model) == ["model: no optimizer holds first.weight, first.bias"]


def test_frozen_parameters_are_nothing_to_tell():
    def model(width: int) -> Any:
        net = Net(width)
        net.first.requires_grad_(False)
        return net, SGD(net.readout.parameters(), lr=0.1)

    assert notes_of(model) == []


def test_parameters_whose_module_is_never_called_are_told():
    notes = notes_of(trained_by_sgd(Wrapped), probe=None)
    assert notes == ["model: not visible: inner.weight (trained, but not in a call of their own module)"]
    # the diagnosis follows the functions that use it
    assert notes_of(trained_by_sgd(Wrapped)) == []


def test_a_shared_parameter_is_visible_through_any_module_that_is_called():
    class Tied(nn.Module):
        """`holder` only lends its weight to `caller`."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.holder, self.caller = nn.Linear(64, width), nn.Linear(width, 10), nn.Linear(width, 10)
            self.caller.weight, self.caller.bias = self.holder.weight, self.holder.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.caller(self.first(x))

    assert notes_of(trained_by_sgd(Tied)) == []


def test_parameters_in_a_list_are_visible_through_the_module_that_uses_them():
    class Listed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.gains = nn.Linear(64, width), nn.ParameterList([torch.ones(width)])
            self.readout = nn.Linear(width, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.first(x) * self.gains[0])

    assert notes_of(trained_by_sgd(Listed)) == []


@pytest.mark.parametrize(("p", "training", "told"), [(0.1, True, True), (0.0, True, False), (0.1, False, False)])
@pytest.mark.fault(25)
def test_dropout_is_told_when_it_acts(p, training, told):
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.Dropout(p), nn.Linear(width, 10)).train(training)

    expected = "model: dropout is on in 1 module: its noise is part of every change; set p=0 in build"
    assert notes_of(trained_by_sgd(make)) == ([expected] if told else [])


def test_outputs_that_are_not_measured_are_counted():
    def build(width: int) -> Any:
        model = Labelled(lambda loss, logits: SimpleNamespace(loss=loss))
        return model, SGD(model.parameters(), lr=0.1)

    x, y = pair_batch()
    record = finished(run(build, {"inputs": x, "labels": y}, loss=None, steps=2))
    assert record.notes == ["an output of type SimpleNamespace was not measured (3 times)"]
