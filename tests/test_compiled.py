"""Compiled, scripted, traced and copied models: recorded right or refused with a reason, and never silently empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import coordcheck
from coordcheck.recording.distributed.reduction import OUTPUTS
from coordcheck.recording.hooks.hooks import Eager
from coordcheck.runs.records import RunRecord

# the compiler itself looks at the gradients of the tensors that a compiled layer gets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

# before that, what is compiled is refused, which the tests below hold for every torch
runs_eagerly = pytest.mark.skipif(not Eager.possible, reason="compiled code runs eagerly on demand since torch 2.6")

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    assert stance() == "default"
    torch.compiler.reset()


def stance() -> str:
    if not Eager.possible:
        return "default"
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).tanh() + self.two(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.branch, self.outer = nn.Linear(6, 16), Branch(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.branch(self.inner(x).relu()))


Prepared = tuple[nn.Module, Callable[[Tensor], Tensor]]


def given(model: Net, **options: Any) -> Prepared:
    compiled = torch.compile(model, **options)
    return compiled, compiled


def given_inside(model: Net, **options: Any) -> Prepared:
    return model, torch.compile(model, **options)


def in_place(model: Net, **options: Any) -> Prepared:
    model.compile(**options)
    return model, model


def layer(model: Net, **options: Any) -> Prepared:
    model.branch = torch.compile(model.branch, **options)
    return model, model


def layer_in_place(model: Net, **options: Any) -> Prepared:
    model.branch.compile(**options)
    return model, model


def function(model: Net, **options: Any) -> Prepared:
    return model, torch.compile(lambda x: model(x), **options)


WAYS = [given, given_inside, in_place, layer, layer_in_place, function]


def stepped(model: nn.Module, optimizer: SGD, call: Callable[[Tensor], Tensor]) -> None:
    optimizer.zero_grad()
    call(X).square().mean().backward()
    optimizer.step()


def eager() -> tuple[RunRecord, list[Tensor]]:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with coordcheck.Recorder(model, optimizer, width=16, steps=2) as found:
        for _ in range(5):
            stepped(model, optimizer, model)
    return found.record, [p.detach().clone() for p in model.parameters()]


def same(found: RunRecord, expected: RunRecord) -> bool:
    return (found.sites, found.rows, found.parameters, found.uses, found.notes) == (
        *(expected.sites, expected.rows, expected.parameters, expected.uses, expected.notes),
    )


@pytest.mark.fault(43)
@runs_eagerly
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("fullgraph", [False, True], ids=["graph breaks", "full graph"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_compiled_model_is_recorded_as_the_eager_one(way, fullgraph, called):
    expected, weights = eager()
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    passed, call = way(model, backend="eager", fullgraph=fullgraph)
    if called:
        call(X)
    stances = []
    with coordcheck.Recorder(passed, optimizer, width=16, steps=2) as found:
        for _ in range(5):
            stepped(model, optimizer, call)
            stances.append(stance())
    assert same(found.record, expected)
    assert all(map(torch.equal, model.parameters(), weights))
    # t=2 is recorded in the third call; after its update the compiler is at work again, inside the block
    assert stances == ["force_eager", "force_eager", "default", "default", "default"]


@runs_eagerly
def test_a_model_that_is_compiled_inside_the_block_is_recorded():
    expected, _ = eager()
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with coordcheck.Recorder(model, optimizer, width=16, steps=2) as found:
        call = torch.compile(model, backend="eager", fullgraph=True)
        for _ in range(5):
            stepped(model, optimizer, call)
    assert same(found.record, expected)


@runs_eagerly
def test_a_compiled_training_step_is_recorded():
    expected, weights = eager()
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    step = torch.compile(stepped, backend="eager")
    with coordcheck.Recorder(model, optimizer, width=16, steps=2) as found:
        for _ in range(5):
            step(model, optimizer, model)
        assert stance() == "force_eager"  # no hook of ours is outside of the step, where it could be put back
    assert same(found.record, expected)
    assert all(map(torch.equal, model.parameters(), weights))


@runs_eagerly
def test_a_loop_that_raises_leaves_the_compiler_as_it_was():
    model = Net()
    with (
        pytest.raises(ValueError, match="loop"),
        coordcheck.Recorder(torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1), width=16),
    ):
        raise ValueError("loop")
    assert stance() == "default"


@runs_eagerly
def test_recorders_inside_each_other_share_the_compiler():
    outer, inner, lone = Eager(), Eager(), Eager()
    with torch.compiler.set_stance("eager_on_recompile"):
        outer.begin()
        inner.begin()
        outer.end()
        outer.end()
        assert stance() == "force_eager"
        lone.end()
        inner.end()
        assert stance() == "eager_on_recompile"


def test_a_torch_that_cannot_run_eagerly_refuses(monkeypatch):
    monkeypatch.setattr(Eager, "possible", False)
    model = Net()
    with pytest.raises(coordcheck.CoordCheckError, match=r"the model is compiled.*Check the eager model"):
        coordcheck.Recorder(torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1), width=16)
    with coordcheck.Recorder(model, SGD(model.parameters(), lr=0.1), width=16, steps=1) as found:
        call = torch.compile(model, backend="eager")
        call(X).sum().backward()
    assert "no training call of the model was seen; was it compiled?" in found.record.notes[0]


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, X)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, traced], ids=["scripted", "traced"])
@pytest.mark.parametrize("inside", [False, True], ids=["whole", "layer"])
def test_a_scripted_or_traced_model_is_refused(make, inside):
    model = make(Net())
    if inside:
        model = nn.Sequential(model)
    with pytest.raises(coordcheck.CoordCheckError, match=r"a ScriptModule.*Pass the eager module"):
        coordcheck.Recorder(model, SGD(Net().parameters(), lr=0.1), width=16)


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "layer"])
def test_copies_on_several_devices_are_refused(inside):
    parallel = nn.DataParallel(Net(), device_ids=[])
    parallel.device_ids = [0, 1]
    model = nn.Sequential(parallel) if inside else parallel
    with pytest.raises(coordcheck.CoordCheckError, match=r"DataParallel on several devices.*DistributedDataParallel"):
        coordcheck.Recorder(model, SGD(model.parameters(), lr=0.1), width=16)
    with pytest.raises(coordcheck.CoordCheckError, match="DataParallel on several devices"):
        coordcheck.check(lambda width: (model, SGD(model.parameters(), lr=0.1)), (X, X), loss=nn.functional.mse_loss)


def checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(model)


def parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model, device_ids=[])


@pytest.mark.parametrize("wrap", [checkpointed, parallel], ids=["checkpointed", "data parallel"])
def test_wrapped_layers_keep_their_names(wrap):
    expected, _ = eager()
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    model.branch = wrap(model.branch)
    with coordcheck.Recorder(model, optimizer, width=16, steps=2, own_updates=False) as found:
        for _ in range(3):
            stepped(model, optimizer, model)
    layers = {site.layer for site in found.record.sites}
    assert layers == {site.layer for site in expected.sites if site.kind in OUTPUTS}
    unmeasured = [info._replace(gradient=None, update=None) for info in expected.parameters]
    assert found.record.parameters == unmeasured  # without own updates
    first = {(found.record.sites[row.site].layer, *row[1:]) for row in found.record.rows}
    assert first <= {(expected.sites[row.site].layer, *row[1:]) for row in expected.rows}


@pytest.mark.parametrize("wrap", [checkpointed, parallel], ids=["checkpointed", "data parallel"])
def test_a_check_of_wrapped_models_names_them_plainly(wrap):
    def build(width: int, wrapped: bool) -> tuple[nn.Module, SGD]:
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
        optimizer = SGD(model.parameters(), lr=0.1)
        if wrapped and wrap is parallel:
            return parallel(model), optimizer
        if wrapped:
            model[0] = wrap(model[0])
        return model, optimizer

    labels = {"plain": lambda width: build(width, False), "wrapped": lambda width: build(width, True)}
    report = coordcheck.check(labels, (X, X[:, :3]), loss=nn.functional.mse_loss, widths=(16, 32, 64), seeds=1)
    verdicts = report.verdicts.set_index("label").drop(columns=["explanation"], errors="ignore")
    assert list(verdicts.loc["plain", "layer"]) == list(verdicts.loc["wrapped", "layer"])
    assert list(verdicts.loc["plain", "verdict"]) == list(verdicts.loc["wrapped", "verdict"])
