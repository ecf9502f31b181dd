"""Python's stack: whatever recurses in a loop without hooks does so with them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import coordcheck
from coordcheck.recording.hooks.frames import Room
from coordcheck.recording.recorder import Recorder

X = torch.ones(2, 4)


def nested(depth: int) -> nn.Module:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


class Recursive(nn.Module):
    """Calls itself: its depth is not that of its modules."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.layer = depth, nn.Linear(4, 4)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        return self(x, level + 1) if level < self.depth else self.layer(x)


class Checkpointed(nn.Module):
    """Every level of it is a checkpoint inside another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def checkpointed(depth: int) -> nn.Module:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth // 8):
        model = Checkpointed(model)
    return model


class Copied(nn.Module):
    """Makes a copy of what it holds at every call, as averages of weights do."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inner = nested(depth // 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + copy.deepcopy(self.inner)(x).detach()


def below(depth: int, call: Callable[[], Any]) -> Any:
    """The same, so many frames further down."""
    return below(depth - 1, call) if depth else call()


class Below(nn.Module):
    """Its layer is called far down the stack, by functions that are no modules."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.layer = 3 * depth, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return below(self.depth, lambda: self.layer(x))


def trained(model: nn.Module, recorded: Callable[..., Any] | None) -> list[Any] | None:
    """The weights after six updates; None where the stack is too low for the loop."""

    def loop() -> None:
        for _ in range(6):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    try:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if recorded is None:
            loop()
        else:
            with recorded(model, optimizer) as recorder:
                loop()
            assert recorder.done
            assert not [note for note in recorder.record.notes if "failed" in note]
            assert not recorder._sites.skipped
    except RecursionError:
        return None
    return [p.tolist() for p in model.parameters()]


def made(make: Callable[[int], nn.Module], depth: int) -> nn.Module:
    torch.manual_seed(0)
    return make(depth)


@cache  # the stack of every test is as low
def deepest(make: Callable[[int], nn.Module]) -> int:
    """The deepest model that the bare loop trains."""
    low, high = 1, 300
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if trained(made(make, middle), None) is not None else (low, middle - 1)
    return low


KINDS = [nested, Recursive, checkpointed, Copied, Below]


@pytest.fixture(autouse=True)
def _lower_stack():
    """A stack on which a model of a hundred levels is deep."""
    found, frames, frame = sys.getrecursionlimit(), 0, sys._getframe()
    while frame is not None:
        frames, frame = frames + 1, frame.f_back
    sys.setrecursionlimit(frames + 300)
    yield
    assert sys.getrecursionlimit() == frames + 300
    sys.setrecursionlimit(found)


@pytest.mark.parametrize("own_updates", [True, False], ids=["own updates", "scales"])
@pytest.mark.parametrize("make", KINDS)
def test_every_depth_that_the_bare_loop_takes_is_recorded(make, own_updates):
    most = deepest(make)
    assert most > 10
    for depth in (most, most - 1, most - 2, most // 2):
        found = trained(made(make, depth), lambda *of: Recorder(*of, width=4, own_updates=own_updates))
        assert found == trained(made(make, depth), None) is not None


def test_it_is_the_hooks_that_take_the_frames(monkeypatch):
    """Without the room that is made for them, the deepest model is not trained."""
    monkeypatch.setattr(Room, "begin", lambda self: None)
    most = deepest(nested)
    assert trained(made(nested, most), lambda *of: Recorder(*of, width=4)) is None


def test_a_check_takes_what_the_bare_loop_takes():
    most = deepest(nested)

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4), nested(most - 20))
        return model, torch.optim.SGD(model.parameters(), 0.1)

    report = coordcheck.check(build, (X, X), loss=nn.functional.mse_loss, widths=(4, 8, 16), seeds=1, steps=1)
    assert [record.reason for record in report.records if not record.finished] == []


def test_the_last_of_several_puts_the_limit_back():
    before = sys.getrecursionlimit()
    first, second = Room(), Room()
    first.begin()
    raised = sys.getrecursionlimit()
    second.begin()
    first.end()
    assert sys.getrecursionlimit() == raised > before
    second.end()
    second.end()
    assert sys.getrecursionlimit() == before


def test_a_limit_that_somebody_else_set_stays():
    before = sys.getrecursionlimit()
    with Room():
        sys.setrecursionlimit(before + 5000)
    assert sys.getrecursionlimit() == before + 5000
    sys.setrecursionlimit(before)


def test_a_loop_that_raises_leaves_the_limit_as_it_was():
    before, model = sys.getrecursionlimit(), nested(1)
    with pytest.raises(ZeroDivisionError), Recorder(model, torch.optim.SGD(model.parameters(), 0.1), width=4):
        raise ZeroDivisionError
    assert sys.getrecursionlimit() == before
