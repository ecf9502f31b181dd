"""The end of a backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.variable import Variable
from torch.utils.checkpoint import checkpoint

from coordcheck.recording.hooks.backwards import AfterBackward


def listening(model: nn.Module) -> tuple[AfterBackward, list[float]]:
    weight, seen = next(model.parameters()), []
    return AfterBackward(model.parameters(), lambda: seen.append(float(weight.grad.sum())), failed=pytest.fail), seen


def test_it_comes_once_a_pass_when_everything_is_added_up():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    listener, seen = listening(model)
    for _ in range(2):
        model(torch.ones(3, 4)).sum().backward()
    grown = float(next(model.parameters()).grad.sum())
    assert seen == pytest.approx([grown / 2, grown])
    torch.autograd.grad(model(torch.ones(3, 4)).sum(), list(model.parameters()))  # adds to no gradient
    listener.close()
    model(torch.ones(3, 4)).sum().backward()
    assert len(seen) == 2
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_it_comes_after_what_other_hooks_have_asked_for():
    """As DistributedDataParallel does, which averages gradients over ranks when a pass ends."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    listener, seen = listening(model)

    def average() -> None:
        for p in model.parameters():
            p.grad.fill_(7.0)

    def ask(parameter: Tensor) -> None:
        Variable._execution_engine.queue_callback(average)

    model[0].weight.register_post_accumulate_grad_hook(ask)  # the last that gets its gradient
    model(torch.ones(3, 4)).sum().backward()
    assert seen == [7.0 * 16]
    listener.close()


@pytest.mark.parametrize("reentrant", [True, False])
def test_passes_within_passes(reentrant):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    listener, seen = listening(model)
    x = torch.ones(3, 4, requires_grad=True)
    model[1](checkpoint(model[0], x, use_reentrant=reentrant)).sum().backward()
    assert seen[-1] == pytest.approx(float(model[0].weight.grad.sum()))
    listener.close()


def test_a_pass_that_raises_is_not_the_end_of_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    listener, seen = listening(model)

    def refuse(gradient: Tensor) -> None:
        raise ValueError("refused")

    x = torch.ones(3, 4, requires_grad=True)
    handle = x.register_hook(refuse)
    with pytest.raises(ValueError, match="refused"):
        model(x).sum().backward()
    handle.remove()
    model(x).sum().backward()
    assert seen[-1] == pytest.approx(float(model[0].weight.grad.sum()))
    listener.close()


def test_what_cannot_have_a_gradient_is_left_out():
    AfterBackward([torch.ones(2), torch.ones(2, requires_grad=True) * 2], lambda: None, failed=pytest.fail).close()


def test_what_the_action_raises_is_told_and_not_raised_into_the_loop():
    weight, told = nn.Parameter(torch.ones(2)), []
    listener = AfterBackward([weight], lambda: 1 / 0, failed=told.append)
    weight.sum().backward()
    listener.close()
    assert [type(error) for error in told] == [ZeroDivisionError]
