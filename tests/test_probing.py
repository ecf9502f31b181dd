"""Passes on a probe: recorded after each update of a training on a stream, and nothing is left of them."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_recorder import LOOPS, X, rms, rows_of, states
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import coordcheck
from coordcheck.recording.hooks.randomness import seed_everything
from coordcheck.recording.layers.activations import ActivationRecorder
from coordcheck.recording.layers.probing import Onlooker
from coordcheck.recording.recorder import Recorder
from coordcheck.runs.words import Quantity, Status


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Loops of every kind: the pass on their own batch records what the calls of the training do


@pytest.mark.fault(24)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_pass_on_the_batch_of_a_loop_is_its_training_call_and_trains_as_without(loop):
    expected: list[float] = []
    opened: list[Recorder] = []
    bare = states(loop(lambda *of: nullcontext(), lambda output: expected.append(rms(output))))

    def recording(model: nn.Module, optimizer: Any) -> Recorder:
        opened.append(Recorder(model, optimizer, width=8, steps=3, probe=X))
        return opened[0]

    model = loop(recording, lambda output: None)
    rows = rows_of(opened[0])
    assert all(map(torch.equal, states(model), bare))
    assert [site.layer for site in opened[0].record.sites][:4] == ["0", "1", "2", "(model)"]
    found = [rows["(model)", t, "activation"].value for t in range(4)]
    assert found == pytest.approx(expected[:4], rel=1e-5)
    assert {row.status for row in rows.values()} <= {Status.OK, Status.ZERO}
    assert len(set(expected)) > 2
    assert opened[0].done
    assert not [note for note in opened[0].record.notes if "failed" in note]


# Models that a forward pass moves, in all the ways that we know of

DRAWN = torch.Generator()
LISTED: list[float] = []
TOTAL = 0


class Cache:
    """An object of the model's own, which is no module."""

    def __init__(self) -> None:
        self.seen = 0
        self.last: dict[str, list[Tensor]] = collections.defaultdict(list)


class Moving(nn.Module):
    """One linear layer, and something that its forward pass moves, which the next one depends on."""

    def __init__(self, move: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.out, self.move = nn.Linear(8, 8), nn.Linear(8, 8), move
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.table = nn.Embedding(8, 8, max_norm=0.5)
        self.register_buffer("average", torch.zeros(8))
        self.calls, self.listed, self.kept = 0, [0.0], collections.deque([1.0], maxlen=3)
        self.cache, self.plain, self.array = Cache(), torch.zeros(8), np.zeros(8)
        self.generator, self.numpys = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.shadow = nn.Parameter(torch.ones(8), requires_grad=False)
        DRAWN.manual_seed(2)
        LISTED.clear()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.move(self, self.layer(x)))


def batch_norm(model: Any, h: Tensor) -> Tensor:
    return model.norm(h) + model.norm.running_mean


def momentless_norm(model: Any, h: Tensor) -> Tensor:
    model.norm.momentum = None  # an average over all calls, whose number it counts
    return model.norm(h) + model.norm.running_var


def dropout(model: Any, h: Tensor) -> Tensor:
    return model.dropout(h)


def numpy_noise(model: Any, h: Tensor) -> Tensor:
    return h * float(1 + np.random.rand()) * (1 + random.random())


def own_generators(model: Any, h: Tensor) -> Tensor:
    return h + torch.randn(8, generator=model.generator) * float(model.numpys.normal())


def generator_of_the_file(model: Any, h: Tensor) -> Tensor:
    return h + torch.randn(8, generator=DRAWN)


def list_of_the_file(model: Any, h: Tensor) -> Tensor:
    LISTED.append(float(h.detach().mean()))
    return h * (1 + sum(LISTED))


def name_of_the_file(model: Any, h: Tensor) -> Tensor:
    global TOTAL
    TOTAL = TOTAL + 1 if model.calls else 0
    model.calls = 1
    return h * (1 + TOTAL)


def closure() -> Callable[[Any, Tensor], Tensor]:
    count = 0

    def move(model: Any, h: Tensor) -> Tensor:
        nonlocal count
        count = count + 1 if model.calls else 0
        model.calls = 1
        return h * (1 + count)

    return move


def counter(model: Any, h: Tensor) -> Tensor:
    model.calls += 1
    return h / model.calls


def containers(model: Any, h: Tensor) -> Tensor:
    model.listed.append(float(h.detach().mean()))
    model.kept.appendleft(float(h.detach().std()))
    return h * (1 + sum(model.listed)) + sum(model.kept)


def object_of_its_own(model: Any, h: Tensor) -> Tensor:
    model.cache.seen += 1
    model.cache.last["h"].append(h.detach())
    return h / model.cache.seen + torch.stack(model.cache.last["h"]).mean()


def buffer_in_place(model: Any, h: Tensor) -> Tensor:
    model.average.mul_(0.9).add_(h.detach().mean(0))
    return h + model.average


def buffer_anew(model: Any, h: Tensor) -> Tensor:
    model.average = 0.9 * model.average + h.detach().mean(0)
    return h + model.average


def buffer_data(model: Any, h: Tensor) -> Tensor:
    model.average.data.add_(h.detach().mean(0))  # which the count of writes does not tell
    return h + model.average


def plain_tensors(model: Any, h: Tensor) -> Tensor:
    model.plain.add_(h.detach().mean(0))
    model.array += h.detach().mean(0).numpy()
    return h + model.plain + torch.as_tensor(model.array, dtype=torch.float32)


def hidden_state(model: Any, h: Tensor) -> Tensor:
    model.plain = torch.tanh(h.detach().mean(0) + model.plain)
    return h + model.plain


def frozen_parameter(model: Any, h: Tensor) -> Tensor:
    model.shadow.data.mul_(0.9).add_(h.detach().mean(0))
    return h + model.shadow


def table_with_a_largest_norm(model: Any, h: Tensor) -> Tensor:
    return h + model.table((h.detach()[:, 0] > 0).long() * 3)


def spectral_norm(model: Any, h: Tensor) -> Tensor:
    return model.spectral(h)


def mode(model: Any, h: Tensor) -> Tensor:
    h = model.dropout(h)
    model.dropout.train(not model.dropout.training)
    return h


def hook_for_one_call(model: Any, h: Tensor) -> Tensor:
    if not model.calls:
        model.calls = 1
        model.handle = model.out.register_forward_pre_hook(lambda out, args: (args[0] * 2, model.handle.remove())[:1])
    return h


def list_of_a_hook(model: Any, h: Tensor) -> Tensor:
    if not model.calls:
        model.calls, model.seen = 1, [0.0]
        seen = model.seen
        del model.seen  # the hook alone has it
        model.out.register_forward_hook(
            lambda out, args, y: seen.append(float(y.detach().mean())) or y * (1 + sum(seen))
        )
    return h


def gradients_inside(model: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        z = h.detach().requires_grad_()
        (force,) = torch.autograd.grad(model.out(z).square().sum(), z)
    return h + force


def backward_inside(model: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        model.out(h.detach()).square().mean().backward()
    return h


def gradients_needed(model: Any, h: Tensor) -> Tensor:
    (force,) = torch.autograd.grad(model.out(h).square().sum(), h, create_graph=True)  # raises where there are none
    return h + force


MOVES = [
    *(batch_norm, momentless_norm, dropout, numpy_noise, own_generators, generator_of_the_file, list_of_the_file),
    *(name_of_the_file, closure(), counter, containers, object_of_its_own, buffer_in_place, buffer_anew, buffer_data),
    *(plain_tensors, hidden_state, frozen_parameter, table_with_a_largest_norm, spectral_norm, mode),
    *(hook_for_one_call, list_of_a_hook, gradients_inside, backward_inside, gradients_needed),
]


def on_a_stream(move: Any, probe: Any, *, updates: int = 6, steps: int = 4) -> tuple[Any, Recorder | None]:
    """Everything that the training of six updates leaves, and what was recorded of it."""
    seed_everything(0)
    model = Moving(move)
    optimizer = Adam(model.parameters(), lr=0.05)
    recorder = None if probe is None else Recorder(model, optimizer, width=8, steps=steps, probe=probe)
    losses = []
    with recorder or nullcontext():
        for t in range(updates):
            optimizer.zero_grad()
            loss = model(numbers(6, 8, seed=t)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    drawn = torch.rand(1).item(), random.random(), np.random.rand()
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    return (losses, [value.tolist() for value in model.state_dict().values()], gradients, drawn), recorder


@pytest.mark.fault(22)
@pytest.mark.fault(23)
@pytest.mark.fault(24)
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__qualname__.partition(".")[0])
def test_nothing_is_left_of_a_pass(move):
    bare, _ = on_a_stream(move, None)
    found, recorder = on_a_stream(move, numbers(6, 8, seed=99))
    assert found == bare
    assert recorder is not None
    assert recorder.done
    assert {row.step for row in recorder.record.rows} == {0, 1, 2, 3, 4}
    changes = [row for row in recorder.record.rows if row.quantity is Quantity.CHANGE]
    assert {row.status for row in changes} <= {Status.OK, Status.ZERO}
    assert not [note for note in recorder.record.notes if "failed" in note]


@pytest.mark.parametrize(
    ("move", "kept"),
    [(dropout, "kept_randomness"), (buffer_in_place, "kept"), (frozen_parameter, "_parameters_kept")],
)
def test_without_what_is_put_back_the_training_is_another(move, kept, monkeypatch):
    """What the test before relies on: each of these loops tells when a pass leaves something."""
    if kept == "kept":
        monkeypatch.setattr("coordcheck.recording.layers.probing.kept", lambda model: [])
    elif kept == "kept_randomness":
        monkeypatch.setattr("coordcheck.recording.layers.probing.kept_randomness", nullcontext)
    else:
        monkeypatch.setattr(Onlooker, "_parameters_kept", lambda self: nullcontext())
    assert on_a_stream(move, numbers(5, 8, seed=99))[0] != on_a_stream(move, None)[0]


def test_noise_is_the_same_at_every_step_and_no_change():
    """Where nothing learns, dropout alone changes nothing."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    optimizer = SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, width=8, probe=numbers(4, 8)) as found:
        for seed in range(5):
            model(numbers(6, 8, seed=seed)).square().mean().backward()
            optimizer.step()
    changes = [row.value for row in found.record.rows if row.quantity is Quantity.CHANGE]
    assert len(changes) == 12
    assert set(changes) == {0.0}
    assert not [note for note in found.record.notes if "dropout" in note]


def test_what_waits_for_its_backward_pass_is_not_touched():
    """A graph that is kept over an update holds a buffer, which the pass moves and puts back."""
    model = Moving(lambda model, h: buffer_in_place(model, h) * model.average)
    optimizer = SGD([model.out.bias], lr=0.1)
    with Recorder(model, optimizer, width=8, steps=1, own_updates=False, probe=numbers(4, 8)) as found:
        loss = model(numbers(6, 8)).square().mean()
        loss.backward(retain_graph=True, inputs=[model.out.bias])
        version = model.average._version
        optimizer.step()  # the pass is before it
        assert model.average._version == version
        loss.backward(inputs=[model.layer.bias])
    assert found.done


# What is recorded


def test_the_change_on_the_probe_is_the_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    optimizer, probe, before = SGD(model.parameters(), lr=0.1), numbers(5, 4, seed=9), model.weight.detach().clone()
    weights = []
    with Recorder(model, optimizer, width=4, steps=3, probe=probe) as found:
        for t in range(4):
            weights.append(model.weight.detach().clone())
            optimizer.zero_grad()
            model(numbers(6, 4, seed=t)).square().mean().backward()
            optimizer.step()
    rows = rows_of(found)
    for t, weight in enumerate(weights):
        assert rows["(model)", t, "activation"].value == pytest.approx(rms(probe @ weight.T), rel=1e-6)
        if t:
            assert rows["(model)", t, "change"].value == pytest.approx(rms(probe @ (weight - before).T), rel=1e-5)
    own = rows["weight", 1, "own_update"].value  # on the batch of the training, whose gradient it is
    assert own == pytest.approx(rms(numbers(6, 4) @ (weights[1] - before).T), rel=1e-5)


def test_nothing_is_inherited_from_another_batch_beside_a_probe():
    _, moved = on_a_stream(counter, numbers(5, 8))
    assert Quantity.OWN_UPDATE in {row.quantity for row in moved.record.rows}
    assert Quantity.INHERITED not in {row.quantity for row in moved.record.rows}


@pytest.mark.parametrize("updates", [4, 5, 9])
def test_as_many_updates_as_steps_are_enough(updates):
    _, recorder = on_a_stream(dropout, numbers(5, 8), updates=updates)
    assert recorder.done
    assert recorder.record.notes == []
    assert recorder.record.rows == on_a_stream(dropout, numbers(5, 8), updates=6)[1].record.rows


def test_the_last_pass_is_in_the_mode_of_the_training():
    model = Moving(dropout)
    optimizer = SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, width=8, steps=1, probe=numbers(5, 8)) as found:
        model(numbers(6, 8)).square().mean().backward()
        optimizer.step()
        model.eval()
    assert found.done
    assert not model.training
    assert not model.dropout.training
    assert {row.value for row in found.record.rows if row.quantity is Quantity.CHANGE} == {0.0}


def test_the_pass_is_under_the_autocast_of_the_training_and_leaves_its_cache_alone():
    def train(probe: Any) -> tuple[list[list[float]], Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        optimizer = SGD(model.parameters(), lr=0.1)
        recorder = Recorder(model, optimizer, width=8, steps=2, probe=probe) if probe is not None else nullcontext()
        with recorder, torch.autocast("cpu", torch.bfloat16):  # around all of it
            for t in range(4):
                optimizer.zero_grad()
                model(numbers(6, 8, seed=t)).square().mean().backward()
                optimizer.step()
        return [p.tolist() for p in model.parameters()], recorder

    weights, found = train(numbers(5, 8))
    assert weights == train(None)[0]
    assert {site.dtype for site in found.record.sites if site.kind.value == "module"} == {"bfloat16"}


PROBES = {
    "tensor": numbers(5, 8),
    "pair": (numbers(5, 8), torch.zeros(5)),
    "list of two": [numbers(5, 8), torch.zeros(5)],
    "mapping": {"x": numbers(5, 8)},
    "function": lambda model: model(numbers(5, 8)),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_is_a_batch_or_a_function(probe):
    _, found = on_a_stream(counter, probe)
    assert found.record.rows == on_a_stream(counter, PROBES["tensor"])[1].record.rows


def test_a_probe_that_is_changed_later_is_the_one_that_was_given():
    probe = numbers(5, 8)
    seed_everything(0)
    model = nn.Linear(8, 8)
    optimizer = SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, width=8, probe=probe) as found:
        for _ in range(5):
            model(numbers(6, 8)).square().mean().backward()
            optimizer.step()
            probe.zero_()
    assert {row.value for row in found.record.rows if row.quantity is Quantity.CHANGE} == {0.0}


def test_a_function_that_gives_another_input_is_told():
    seeds = iter(range(9))
    _, found = on_a_stream(counter, lambda model: model(numbers(5, 8, seed=next(seeds))))
    assert rows_of(found)["layer", 1, "change"].status is Status.MOVED_INPUT


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (3, "probe must be one batch: a tensor, a mapping or a pair"),
        ([], "probe must be one batch"),
        (iter([numbers(5, 8)]), r"give next\(iter\(loader\)\)"),
        (np.zeros((5, 8)), "The batch holds numpy arrays. Make tensors"),
        ({"x": np.zeros((5, 8))}, r"The batch holds numpy arrays: \['x'\]. Make tensors of them"),
    ],
)
def test_what_is_no_probe_is_refused_before_the_loop(probe, said):
    with pytest.raises(coordcheck.CoordCheckError, match=said):
        on_a_stream(counter, probe)


@pytest.mark.parametrize("steps", [0, 4])
def test_a_probe_that_the_model_refuses_costs_the_recording_alone(steps, caplog):
    bare, _ = on_a_stream(batch_norm, None)
    found, recorder = on_a_stream(batch_norm, numbers(5, 7), steps=steps)
    assert found == bare
    assert not recorder.done
    failed, seen = recorder.record.notes[:2]
    assert failed.startswith("recording failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert seen == f"width 8: recorded nothing of t=0..{steps}: the pass on the probe failed"


@pytest.mark.parametrize("error", [ZeroDivisionError("the third time"), SystemExit(0)], ids=["error", "sys.exit"])
def test_a_probe_that_fails_later_leaves_what_was_recorded(error):
    calls = []

    def probe(model: nn.Module) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise error
        model(numbers(5, 8))

    _, recorder = on_a_stream(counter, probe)
    assert {row.step for row in recorder.record.rows if row.quantity is Quantity.ACTIVATION} == {0, 1}
    assert any(type(error).__name__ in note for note in recorder.record.notes if note.startswith("recording failed"))


def test_a_site_recorder_alone_can_be_looked_at():
    """As `check` does with a stream."""
    model = Moving(batch_norm)
    before = [value.clone() for value in model.state_dict().values()]
    with ActivationRecorder(model) as sites:
        onlooker = Onlooker(model, sites)
        for step in range(2):
            with sites.window(step):
                onlooker.look(lambda: model(numbers(5, 8)))
    assert {row.value for row in sites.rows if row.quantity is Quantity.CHANGE} == {0.0}
    assert all(map(torch.equal, model.state_dict().values(), before))


# Both controls, on streams


def sp(width: int) -> tuple[nn.Module, Optimizer]:
    model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return model, Adam(model.parameters(), lr=1e-3)


def mup(width: int, base: int = 64) -> tuple[nn.Module, Optimizer]:
    model, _ = sp(width)
    with torch.no_grad():
        model[4].weight.mul_((width / base) ** -0.5)
    slow = [model[2].weight, model[4].weight]
    rest = [p for p in model.parameters() if all(p is not q for q in slow)]
    return model, Adam([{"params": rest}, {"params": slow, "lr": 1e-3 * base / width}], lr=1e-3)


TEACHER = numbers(32, 10)


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    inputs = [numbers(64, 32, seed=t) for t in range(count)]
    return [(x, (x @ TEACHER).argmax(1)) for x in inputs]


def recorded(build: Any, folder: Path, **options: Any) -> coordcheck.Report:
    for width, seed in [(w, s) for w in (64, 128, 256, 512) for s in (0, 1)]:
        torch.manual_seed(seed)
        model, optimizer = build(width)
        with Recorder(model, optimizer, width=width, seed=seed, save_to=folder, **options):
            for x, y in batches():
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return coordcheck.load(folder)


@pytest.mark.fault(56)
@pytest.mark.parametrize("own_updates", [True, False], ids=["own updates", "scales"])
def test_own_loops_on_a_stream_end_red_in_sp_and_green_in_mup(tmp_path, own_updates):
    wrong = recorded(sp, tmp_path / "sp", probe=batches()[0], own_updates=own_updates)
    right = recorded(mup, tmp_path / "mup", probe=batches()[0], own_updates=own_updates)
    assert (wrong.exit_code, right.exit_code) == (1, 0)
    assert wrong.layers.set_index("layer").loc[["2", "4"], "verdict"].tolist() == ["blows up", "blows up"]
    assert set(right.layers["verdict"]) == {"ok"}
    if own_updates:
        assert set(wrong.verdicts[wrong.verdicts["culprit"]]["layer"]) == {"2.weight", "4.weight"}


@pytest.mark.fault(56)
def test_without_a_probe_a_stream_is_judged_by_what_can_be_and_says_so(tmp_path):
    """SP by its parameters; µP is right as far as can be told, and green only where parameters were followed."""
    wrong, right = recorded(sp, tmp_path / "sp"), recorded(mup, tmp_path / "mup")
    assert (wrong.exit_code, right.exit_code) == (1, 0)
    assert set(wrong.culprits["layer"]) == {"2.weight", "4.weight"}
    assert {verdict.value for verdict in right.status.values()} == {"ok, changes not judged"}
    assert "model: OK, CHANGES NOT JUDGED  all 5 layers are right at initialisation (changes not judged)" in str(right)
    told = "give the Recorder one to call the model on after each update, probe=batch"
    assert any(told in note for note in right.notes)
    right.raise_for_status()
    blind = recorded(mup, tmp_path / "blind", own_updates=False)
    assert {verdict.value for verdict in blind.status.values()} == {"undecided"}
    assert blind.exit_code == 3
    assert any(told in note for note in blind.notes)
    assert "add seeds" not in str(blind)
    schema = json.loads((Path(coordcheck.__file__).parent / "reporting" / "report.schema.json").read_text())
    jsonschema.validate(json.loads(right.to_json()), schema)


@pytest.mark.fault(41)
@pytest.mark.parametrize("several", [False, True], ids=["own loop", "check"])
def test_lazy_modules_are_made_before_they_are_looked_at(several):
    def build(width: int) -> tuple[nn.Module, Optimizer]:
        model = nn.Sequential(nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(10))
        return model, SGD(model.parameters(), lr=0.1)

    if several:
        report = coordcheck.check(build, batches(), loss=F.cross_entropy, widths=(4, 8, 16), seeds=1, steps=2)
        records = report.records
    else:
        model, optimizer = build(8)
        with Recorder(model, optimizer, width=8, steps=2, probe=batches()[0]) as found:
            for x, y in batches():
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        records = [found.record]
    for record in records:
        assert record.finished, record.reason
        changes = {row.step for row in record.rows if row.quantity is Quantity.CHANGE and row.status is Status.OK}
        assert changes == {1, 2}
